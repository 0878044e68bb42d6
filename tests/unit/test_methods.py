"""The interface every method in the registry keeps, and NeTI's own rules."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from frames import created
from perfusion_concepts import make_perfusion
from tiny_backbone import build_tiny_backbone
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.denoiser import Denoiser
from neti.models.concepts.concept import Concept
from neti.models.conditioning.conditioning import ConceptVectors, Conditioning, condition
from neti.models.conditioning.tokens import tokenize
from neti.models.methods import METHODS, XTI, Method, NeTI, NeTIConfig, TextualInversion, WordVectorsConfig
from neti.models.methods.neti.mapper import NormRule
from neti.models.methods.neti.positional_encoding import TimeLayerEncoding
from neti.training.coach.objective import Batch, Objective
from neti.training.config.options import MethodName
from neti.utils.errors import UserError

L, D = 16, 32
TIMESTEPS = torch.tensor([0, 137, 999])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TRAINED = [name for name in METHODS if name != "elite"]  # an encoder makes ELITE's concepts: tests/unit/test_elite_*.py


def create(name: str = "neti", seed: int = 0, text_width: int = D, **settings: Any) -> Any:
    if name == "perfusion":
        return make_perfusion(build_tiny_backbone(), **settings)
    method_class = METHODS[name]
    embedding = torch.randn(text_width, generator=seeded(99))
    return created(method_class, method_class.config_class(**settings), L, embedding, seeded(seed))


def make_batch(backbone: Backbone) -> Batch:
    draw = seeded(1)
    return Batch(
        latents=torch.randn(2, 4, 8, 8, generator=draw),
        noise=torch.randn(2, 4, 8, 8, generator=draw),
        timesteps=torch.tensor([10, 700]),
        tokens=tokenize(backbone.tokenizer, ["a photo of a {}", "a {} and a {}"], ["{}"]),
        generators=[seeded(2), seeded(3)],
    )


def parts(backbone: Backbone) -> tuple[torch.nn.Module, ...]:
    return backbone.text_encoder, backbone.unet, backbone.vae


def frozen_tensors(backbone: Backbone) -> dict[str, Tensor]:
    return {f"{i}.{key}": v.clone() for i, part in enumerate(parts(backbone)) for key, v in part.state_dict().items()}


def test_configs_offer_every_method() -> None:
    assert [name.value for name in MethodName] == TRAINED
    assert list(METHODS) == [method.name for method in METHODS.values()]


@pytest.mark.parametrize("name", TRAINED)
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
            copy = type(method)(config, method.frame)
        copy.load_state_dict(method.state_dict(), assign=True)
        assert torch.equal(copy.eval().vectors(TIMESTEPS).words, method.vectors(TIMESTEPS).words)

    def test_every_parameter_is_trained_once(self, name: str) -> None:
        method: Method = create(name)
        grouped = [id(parameter) for group in method.parameter_groups() for parameter in group["params"]]
        assert sorted(grouped) == sorted(id(parameter) for parameter in method.parameters())
        assert all(group["lr_scale"] > 0 for group in method.parameter_groups())

    def test_a_concept_file_gives_the_same_vectors(self, name: str, tmp_path: Path) -> None:
        method = create(name).eval()
        Concept(method, "<toy>", "teddy").save(tmp_path / "concept.safetensors")
        loaded = Concept.load(tmp_path / "concept.safetensors").method
        assert type(loaded) is METHODS[name]
        before, after = method.vectors(TIMESTEPS), loaded.vectors(TIMESTEPS)
        assert torch.equal(after.words, before.words)
        assert before.bypass is None or torch.equal(after.bypass, before.bypass)

    def test_one_training_step_moves_the_method_and_nothing_else(self, name: str, tiny_backbone: Backbone) -> None:
        method = create(name).train()
        objective, batch = Objective(method, tiny_backbone), make_batch(tiny_backbone)
        frozen = frozen_tensors(tiny_backbone)
        method_before = {key: tensor.clone() for key, tensor in method.state_dict().items()}
        trained = dict(method.named_parameters())
        optimizer = torch.optim.SGD(method.parameters(), lr=1e-2)
        before = objective(batch)
        before.backward()
        for key, parameter in trained.items():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
        assert not any(p.requires_grad for part in parts(tiny_backbone) for p in part.parameters())
        optimizer.step()
        assert objective(make_batch(tiny_backbone)) < before
        for key, tensor in method.state_dict().items():
            follows = name == "perfusion" and key == "key"  # the running mean of what it observes
            assert torch.equal(tensor, method_before[key]) == (key not in trained and not follows), key
        for key, tensor in frozen_tensors(tiny_backbone).items():
            assert torch.equal(tensor, frozen[key]), key

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


@pytest.mark.parametrize(
    ("settings", "shape"), [({"use_layer": False}, (1, 3, D)), ({"use_time": False}, (L, 1, D)), ({}, (L, 3, D))]
)
def test_a_concept_varies_only_with_what_it_may_depend_on(settings: dict[str, bool], shape: tuple[int, ...]) -> None:
    method = create(**settings).eval()
    vectors, elsewhere = method.vectors(TIMESTEPS), method.vectors(TIMESTEPS - 500)
    assert vectors.words.shape == shape and vectors.bypass is not None and vectors.bypass.shape == shape
    assert torch.equal(vectors.words, elsewhere.words) == (not method.config.use_time)
    rows = vectors.words.flatten(0, 1)
    assert torch.pdist(rows).min() > 1e-4, "where it may vary, it does"
    assert method.train().vectors(TIMESTEPS, generator=seeded()).words.shape == shape, "nested dropout as well"


def test_time_only_and_space_only_read_the_mapper_at_the_origin() -> None:
    whole, time_only, space_only = create().eval(), create(use_layer=False).eval(), create(use_time=False).eval()
    torch.testing.assert_close(time_only.vectors(TIMESTEPS).words[0], whole.vectors(TIMESTEPS).words[0])
    torch.testing.assert_close(space_only.vectors(TIMESTEPS).words[:, 0], whole.vectors(TIMESTEPS).words[:, 0])
    assert TIMESTEPS[0] == 0


def test_a_concept_that_depends_on_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="use_time and use_layer"):
        NeTIConfig(use_time=False, use_layer=False)


@pytest.mark.parametrize("name", ["textual_inversion", "xti"])
def test_vectors_start_at_the_super_category(name: str) -> None:
    words = create(name).vectors(TIMESTEPS).words
    assert words.shape == ((1, 1, D) if name == "textual_inversion" else (L, 1, D))
    assert torch.equal(words, torch.randn(D, generator=seeded(99)).expand_as(words))


def encode(backbone: Backbone, vectors: ConceptVectors) -> Conditioning:
    """The conditioning of one prompt, a batch of as many timesteps as the vectors have."""
    tokens = tokenize(backbone.tokenizer, ["a photo of a <toy> and a teddy"], ["<toy>"])
    with torch.no_grad():
        return condition(backbone.text, tokens, {"<toy>": vectors}, backbone.frame)


def test_textual_inversion_is_the_stock_model_with_one_table_row_exchanged(tiny_backbone: Backbone) -> None:
    method: TextualInversion = create("textual_inversion")
    conditioning = encode(tiny_backbone, method.vectors(TIMESTEPS))

    tokens = tokenize(tiny_backbone.tokenizer, ["a photo of a <toy> and a teddy"], ["<toy>"])
    row = 0  # of a word that the prompt does not have
    assert not (tokens.ids == row).any()
    stock = tiny_backbone.text_encoder
    with torch.no_grad():
        stock.embeddings.token_embedding.weight[row] = method.words[0, 0]
        expected = stock(input_ids=tokens.ids.masked_fill(tokens.slots["<toy>"], row)).last_hidden_state
    for encoding in (*conditioning.keys, *conditioning.values):
        torch.testing.assert_close(encoding, expected, atol=1e-5, rtol=0)

    latents, t = torch.randn(1, 4, 8, 8, generator=seeded(4)), torch.tensor([321])
    with torch.no_grad():
        prediction = tiny_backbone.unet(latents, t, encoder_hidden_states=expected).sample
        torch.testing.assert_close(Denoiser(tiny_backbone)(latents, t, conditioning), prediction, atol=1e-5, rtol=0)


def test_xti_with_equal_vectors_is_textual_inversion(tiny_backbone: Backbone) -> None:
    one, many = create("textual_inversion"), create("xti")
    with torch.no_grad():
        many.words.copy_(one.words)
    expected = encode(tiny_backbone, one.vectors(TIMESTEPS)).packed()
    torch.testing.assert_close(encode(tiny_backbone, many.vectors(TIMESTEPS)).packed(), expected, atol=1e-6, rtol=0)


def test_xti_gives_each_layer_its_own_vector(tiny_backbone: Backbone) -> None:
    method = created(XTI, WordVectorsConfig(), L, torch.zeros(D))
    before = encode(tiny_backbone, method.vectors(TIMESTEPS)).keys
    with torch.no_grad():
        method.words[5] = torch.randn(1, D, generator=seeded(5))
    after = encode(tiny_backbone, method.vectors(TIMESTEPS)).keys
    changed = [layer for layer in range(L) if (after[layer] - before[layer]).abs().max() > 1e-3]
    assert changed == [5]
