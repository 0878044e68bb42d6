"""The interface every method in the registry keeps, and NeTI's own rules."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from neti.models.methods import METHODS, Method, NeTI, NeTIConfig
from neti.models.neti_mapper import NormRule
from neti.models.positional_encoding import TimeLayerEncoding
from neti.utils.errors import UserError

L, D = 16, 32
TIMESTEPS = torch.tensor([0, 137, 999])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def create(name: str = "neti", seed: int = 0, text_width: int = D, **settings: Any) -> Any:
    method_class = METHODS[name]
    embedding = torch.randn(text_width, generator=seeded(99))
    return method_class.create(
        method_class.config_class(**settings), num_layers=L, initial_embedding=embedding, generator=seeded(seed)
    )


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_vectors_have_the_promised_shape(self, name: str) -> None:
        vectors = create(name).vectors(TIMESTEPS)
        for part in (vectors.words, vectors.bypass):
            if part is not None:
                assert part.shape[0] in (1, L) and part.shape[1] in (1, 3) and part.shape[2:] == (D,)
                assert part.dtype == torch.float32

    def test_a_seed_fixes_the_concept(self, name: str) -> None:
        torch.manual_seed(1)
        first = create(name, seed=5).eval().vectors(TIMESTEPS).words
        torch.manual_seed(2)
        assert torch.equal(create(name, seed=5).eval().vectors(TIMESTEPS).words, first)

    def test_state_and_config_are_the_whole_concept(self, name: str) -> None:
        method = create(name).eval()
        with torch.device("meta"):
            config = method.config_class(**asdict(method.config))
            copy = type(method)(config, num_layers=L, text_width=D)
        copy.load_state_dict(method.state_dict(), assign=True)
        assert torch.equal(copy.eval().vectors(TIMESTEPS).words, method.vectors(TIMESTEPS).words)

    def test_every_parameter_is_trained_once(self, name: str) -> None:
        method: Method = create(name)
        grouped = [id(parameter) for group in method.parameter_groups() for parameter in group["params"]]
        assert sorted(grouped) == sorted(id(parameter) for parameter in method.parameters())
        assert all(group["lr_scale"] > 0 for group in method.parameter_groups())

    def test_truncation_outside_the_width_is_refused(self, name: str) -> None:
        method = create(name)
        for truncation in (-1, method.truncation_width + 1):
            with pytest.raises(UserError, match=f"truncation {truncation}"):
                method.vectors(TIMESTEPS, truncation)


@pytest.mark.parametrize(
    ("bypass", "encoding", "count"),
    [(True, True, 563_616), (False, True, 464_544), (True, False, 215_552), (False, False, 116_480)],
)
def test_number_of_parameters_on_stable_diffusion_1(bypass: bool, encoding: bool, count: int) -> None:
    method = create(text_width=768, output_bypass=bypass, use_positional_encoding=encoding)
    assert sum(parameter.numel() for parameter in method.parameters()) == count


def test_joint_rule_gives_the_norm_to_both_halves_together() -> None:
    method = create()
    assert method.config.target_norm == pytest.approx(torch.randn(D, generator=seeded(99)).norm().item())
    vectors = method.vectors(TIMESTEPS)
    both = torch.cat([vectors.words, vectors.bypass], dim=-1).norm(dim=-1)
    torch.testing.assert_close(both, torch.full((L, 3), method.config.target_norm))
    assert (vectors.words.norm(dim=-1) < 0.99 * method.config.target_norm).all()


def test_base_rule_gives_the_norm_to_the_word() -> None:
    joint, base = create().eval(), create(norm_rule=NormRule.base).eval()
    words = base.vectors(TIMESTEPS).words
    torch.testing.assert_close(words.norm(dim=-1), torch.full((L, 3), base.config.target_norm))
    cosine = torch.cosine_similarity(words, joint.vectors(TIMESTEPS).words, dim=-1)
    torch.testing.assert_close(cosine, torch.ones(L, 3))  # the rules differ in length only


def test_output_can_stay_as_it_is() -> None:
    norms = create(normalize_output=False).vectors(TIMESTEPS).words.norm(dim=-1)
    assert norms.std() > 1e-3


def test_no_bypass_gives_words_only() -> None:
    method = create(output_bypass=False)
    vectors = method.vectors(TIMESTEPS)
    assert vectors.bypass is None
    torch.testing.assert_close(vectors.words.norm(dim=-1), torch.full((L, 3), method.config.target_norm))


def test_input_layer_starts_as_the_anchors_encodings() -> None:
    mapper = create().mapper
    assert isinstance(mapper.encoding, TimeLayerEncoding)
    assert torch.equal(mapper.input_layer.weight, mapper.encoding.anchors(10, L))
    at_anchor = mapper.encoding(torch.tensor(300), torch.tensor(5)) @ mapper.input_layer.weight.T
    assert at_anchor.argmax() == 3 * L + 5


def test_vectors_of_one_timestep_do_not_depend_on_the_others() -> None:
    method = create().eval()
    together = method.vectors(TIMESTEPS)
    for b, t in enumerate(TIMESTEPS):
        torch.testing.assert_close(method.vectors(t[None]).words[:, 0], together.words[:, b])


def test_truncation_drops_the_influence_of_later_units() -> None:
    method = create().eval()
    before, full = method.vectors(TIMESTEPS, truncation=16).words, method.vectors(TIMESTEPS).words
    assert not torch.allclose(before, full)
    torch.testing.assert_close(method.vectors(TIMESTEPS, truncation=128).words, full)
    with torch.no_grad():
        method.mapper.output_layer.weight[:, 16:] += 1.0
    assert torch.equal(method.vectors(TIMESTEPS, truncation=16).words, before)
    assert method.vectors(TIMESTEPS, truncation=0).words.unique(dim=0).shape[0] == 1, "only the bias is left"


def test_nested_dropout_acts_in_train_mode_only() -> None:
    method = create(nested_dropout_prob=1.0)
    first, again, other = (method.vectors(TIMESTEPS, generator=seeded(seed)).words for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    method.eval()
    assert torch.equal(method.vectors(TIMESTEPS).words, method.vectors(TIMESTEPS).words)
    off = create(nested_dropout_prob=1.0, use_nested_dropout=False)
    assert torch.equal(off.vectors(TIMESTEPS).words, method.vectors(TIMESTEPS).words)


def test_float32_under_autocast() -> None:
    method: NeTI = create().eval()
    expected = method.vectors(TIMESTEPS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = method.vectors(TIMESTEPS)
    assert actual.words.dtype == torch.float32
    assert torch.equal(actual.words, expected.words)


@pytest.mark.parametrize(
    "wrong", [{"norm_rule": "half"}, {"hidden_dim": 0}, {"nested_dropout_prob": 1.5}, {"num_time_anchors": 0}]
)
def test_config_out_of_range_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        NeTIConfig(**wrong)


def test_norm_rule_is_read_from_a_word() -> None:
    assert NeTIConfig(norm_rule="base").norm_rule is NormRule.base  # type: ignore[arg-type]
    assert replace(NeTIConfig(), norm_rule=NormRule.base) == NeTIConfig(norm_rule=NormRule.base)
