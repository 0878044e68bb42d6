"""Which concept counts where: mixtures against vectors picked by hand, style mixing, several concepts in one prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from frames import created, packed
from torch import Tensor

from neti.models.attention.layers import cross_attention_layers
from neti.models.backbone.backbone import Backbone
from neti.models.conditioning.composition import (
    Mixture,
    Rule,
    concepts_in,
    geometry_layers,
    parse_layers,
    require_concept,
    style_mixture,
)
from neti.models.conditioning.conditioning import ConceptVectors
from neti.models.conditioning.prompts import Prompt
from neti.models.generation.sampling import SamplingConfig, prepare_conditioning
from neti.models.methods import XTI, Method, NeTI, NeTIConfig, TextualInversion, WordVectorsConfig
from neti.utils.errors import UserError

TIMESTEPS = torch.tensor([999, 601, 600, 599, 1, 0])
WIDTH, LAYERS = 32, 16


def neti(seed: int, **config: Any) -> NeTI:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(WIDTH, generator=generator)
    made = created(NeTI, NeTIConfig(**config), LAYERS, embedding, generator)
    return made.eval()


def word(seed: int) -> TextualInversion:
    embedding = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return created(TextualInversion, WordVectorsConfig(), LAYERS, embedding).requires_grad_(False)


def full(vectors: ConceptVectors) -> tuple[Tensor, Tensor, Tensor]:
    """words, bypass [L,B,D] and alpha [L,B,1] of every layer and timestep; zeros where there is no bypass."""
    shape = (LAYERS, len(TIMESTEPS), WIDTH)
    bypass = torch.zeros(1) if vectors.bypass is None else vectors.bypass
    alpha = torch.as_tensor(0.0 if vectors.bypass is None else vectors.bypass_alpha)
    return vectors.words.expand(shape), bypass.expand(shape), alpha.expand(*shape[:2], 1)


def same(mixed: ConceptVectors, expected: Callable[[int, int], tuple[Method, int | None]]) -> None:
    """Every layer and timestep holds what the expected method, truncated as expected, says there alone."""
    got = full(mixed)
    for l in range(LAYERS):  # noqa: E741
        for k, t in enumerate(TIMESTEPS.tolist()):
            method, truncation = expected(l, t)
            alone = full(method.vectors(TIMESTEPS, truncation))
            for mine, own in zip(got, alone, strict=True):
                torch.testing.assert_close(mine[l, k], own[l, k], rtol=0, atol=1e-6)


def test_the_last_rule_that_applies_counts() -> None:
    a, b, c = neti(0), neti(1, bypass_alpha=0.5), word(2)
    mixture = Mixture(
        [
            Rule(a),
            Rule(b, layers=frozenset({3, 4, 5}), truncation=8),
            Rule(c, timesteps=(1, 600)),
            Rule(a, layers=frozenset({4}), timesteps=(599, 999), truncation=2),
        ]
    )

    def expected(l: int, t: int) -> tuple[Method, int | None]:  # noqa: E741
        if l == 4 and t >= 599:
            return a, 2
        if 1 <= t <= 600:
            return c, None
        return (b, 8) if l in (3, 4, 5) else (a, None)

    same(mixture.vectors(TIMESTEPS), expected)


def test_a_calls_truncation_is_for_the_rules_without_their_own() -> None:
    a, b = neti(0), neti(1)
    mixture = Mixture([Rule(a), Rule(b, layers=frozenset({0}), truncation=3)])
    same(mixture.vectors(TIMESTEPS, truncation=16), lambda layer, _: (b, 3) if layer == 0 else (a, 16))


def test_a_truncation_that_changes_with_time() -> None:
    a = neti(0)
    mixture = Mixture([Rule(a), Rule(a, timesteps=(600, 999), truncation=4)])
    same(mixture.vectors(TIMESTEPS), lambda _, t: (a, 4 if t >= 600 else None))


def test_what_does_not_depend_on_layer_or_time_stays_one_row() -> None:
    halves = [Rule(word(0)), Rule(word(1), layers=frozenset(range(8)))]
    assert Mixture(halves).vectors(TIMESTEPS).words.shape == (LAYERS, 1, WIDTH)
    assert Mixture(halves[:1]).vectors(TIMESTEPS).words.shape == (1, 1, WIDTH)
    assert Mixture(halves).vectors(TIMESTEPS).bypass is None


def test_timesteps_between_whole_ones_leave_no_gap() -> None:
    a, b = word(0), word(1)
    mixture = Mixture([Rule(a, timesteps=(601, 999)), Rule(b, timesteps=(0, 600))])
    words = mixture.vectors(torch.tensor([600.5, 600.0, 0.3])).words[0]
    torch.testing.assert_close(words, torch.stack([a.words[0, 0], b.words[0, 0], b.words[0, 0]]))


def test_style_mixing_starts_at_its_timestep(tiny_backbone: Backbone) -> None:
    layers = cross_attention_layers(tiny_backbone.unet)
    inner = {"IN07", "IN08", "MID", "OUT03", "OUT04", "OUT05"}
    assert {layers[index].name for index in geometry_layers(layers)} == inner
    a, b = neti(0), neti(1)
    mixture = style_mixture(a, b, layers, mixing_start=600)
    same(mixture.vectors(TIMESTEPS), lambda layer, t: (b if t <= 600 and layers[layer].name not in inner else a, None))
    chosen = style_mixture(a, b, layers, 600, inner=[0]).vectors(TIMESTEPS)
    same(chosen, lambda layer, t: (b if t <= 600 and layer != 0 else a, None))


@pytest.mark.parametrize("method", [neti(0), word(0)], ids=["neti", "textual inversion"])
def test_a_mixture_of_a_concept_with_itself_is_the_concept(tiny_backbone: Backbone, method: Method) -> None:
    config = SamplingConfig(steps=4)
    mixture = style_mixture(method, method, cross_attention_layers(tiny_backbone.unet), mixing_start=500)
    alone, mixed = (
        prepare_conditioning(tiny_backbone, "a photo of a {x}", {"{x}": each}, config) for each in (method, mixture)
    )
    torch.testing.assert_close(packed(mixed), packed(alone), rtol=0, atol=1e-6)


def test_several_concepts_share_one_text_encoder_call(tiny_backbone: Backbone) -> None:
    rows: list[int] = []
    tiny_backbone.text_encoder.encoder.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    concepts = {"{mug}": neti(0), "{cat}": word(1), "{cat:4}": Mixture([Rule(neti(2), truncation=4)])}
    config = SamplingConfig(steps=3)
    prompt = "{mug} and {cat} and {mug} or {cat:4}"
    prepare_conditioning(tiny_backbone, prompt, concepts, config, chunk_rows=128).at(0)
    assert rows == [LAYERS * 3, 1], "all layers and steps at once, and the negative prompt"


def test_two_concepts_are_two_new_rows_of_a_stock_clip(tiny_backbone: Backbone) -> None:
    """Also with the same concept twice; a word of Textual Inversion is a row of the embedding table."""
    a, b = word(1), word(2)
    prompt = "a photo of {mug} next to {cat} and {mug}"
    config = SamplingConfig(steps=1)
    ours = prepare_conditioning(tiny_backbone, prompt, {"{mug}": a, "{cat}": b}, config).at(0)[0]

    stock, tokenizer = tiny_backbone.text_encoder, tiny_backbone.tokenizer
    stock.resize_token_embeddings(len(tokenizer) + 2, mean_resizing=False)
    table = stock.embeddings.token_embedding.weight
    table[-2:] = torch.cat([a.words[0], b.words[0]])
    rows = {"{mug}": [len(tokenizer)], "{cat}": [len(tokenizer) + 1]}
    pieces = ["a photo of", "{mug}", "next to", "{cat}", "and", "{mug}"]
    ids = [tokenizer.bos_token_id]
    for piece in pieces:
        ids += rows.get(piece) or tokenizer(piece, add_special_tokens=False).input_ids
    ids += [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids) - 1)
    expected = stock(input_ids=torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(ours.keys[:, 0], expected.expand(LAYERS, -1, -1))
    assert torch.equal(ours.keys, ours.values)
    assert ours.slots is not None and [ours.slots.eq(number).sum() for number in (1, 2)] == [2, 1]


def test_sampling_leaves_every_mode_as_it_was(tiny_backbone: Backbone) -> None:
    a, b = neti(0).train(), neti(1)
    mixture = Mixture([Rule(a), Rule(b, layers=frozenset({0}))])
    before = [module.training for module in mixture.modules()]
    config = SamplingConfig(steps=2)
    once, again = (prepare_conditioning(tiny_backbone, "{x}", {"{x}": mixture}, config) for _ in range(2))
    assert torch.equal(packed(once), packed(again)), "nested dropout is off"
    assert [module.training for module in mixture.modules()] == before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("MID", "MID"),
        ("IN08-OUT04", "IN08 MID OUT03 OUT04"),
        ("IN01, OUT10-OUT11", "IN01 OUT10 OUT11"),
        ("geometry", "IN07 IN08 MID OUT03 OUT04 OUT05"),
        ("appearance", "IN01 IN02 IN04 IN05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"),
        ("IN01, geometry", "IN01 IN07 IN08 MID OUT03 OUT04 OUT05"),
    ],
)
def test_layers_as_people_write_them(tiny_backbone: Backbone, text: str, names: str) -> None:
    layers = cross_attention_layers(tiny_backbone.unet)
    assert [layers[index].name for index in sorted(parse_layers(text, layers))] == names.split()
    assert len(parse_layers("all", layers)) == LAYERS


@pytest.mark.parametrize(
    ("text", "message"),
    [("OUT6", "one of IN01, IN02"), ("OUT11-IN01", "write IN01-OUT11"), ("", "must be all"), ("IN01-", "must be all")],
)
def test_wrong_layers_are_told(tiny_backbone: Backbone, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_layers(text, cross_attention_layers(tiny_backbone.unet))


def test_a_layer_or_timestep_without_a_concept_is_named() -> None:
    names = [f"L{index}" for index in range(LAYERS)]
    rules = [Rule(word(0), layers=frozenset(range(15))), Rule(word(1), timesteps=(0, 600))]
    with pytest.raises(UserError, match="no rule is for L15, timesteps 601-999; begin with a rule for all"):
        Mixture(rules, names)
    with pytest.raises(UserError, match="no rule is for layer 15, timesteps 601-999"):
        Mixture(rules)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (lambda: [], "concepts of one base model, not of none"),
        (lambda: [Rule(neti(0)), Rule(narrow())], "16 layers of width 16 and 16 layers of width 32"),
        (lambda: [Rule(neti(0), truncation=129)], "truncation 129"),
        (lambda: [Rule(word(0), truncation=4)], "'textual_inversion' cannot be truncated"),
        (lambda: [Rule(neti(0)), Rule(neti(1), timesteps=(600, 1000))], "timesteps 600-1000"),
        (lambda: [Rule(neti(0)), Rule(neti(1), layers=frozenset({16}))], r"must lie in 0\.\.15"),
    ],
)
def test_mixtures_that_do_not_work_are_refused(rules: Callable[[], list[Rule]], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Mixture(rules())
    assert len(str(caught.value).splitlines()) == 1


def narrow() -> XTI:
    return created(XTI, WordVectorsConfig(), LAYERS, torch.zeros(16))


def test_a_mixture_knows_which_truncations_it_can_keep() -> None:
    mixture = Mixture([Rule(neti(0)), Rule(neti(1), layers=frozenset({0}), truncation=8)])
    mixture.check_truncation(128)
    with pytest.raises(UserError, match="truncation 129"):
        mixture.check_truncation(129)


def test_prompts_name_their_concepts() -> None:
    a, b = neti(0), neti(1)
    found = concepts_in(Prompt.parse("{} with {cat}, {cat:16} and {cat}; {0}"), {"{}": a, "cat": b})
    assert list(found) == ["{}", "{cat}", "{cat:16}"]
    assert found["{}"] is a and found["{cat}"] is b
    same(found["{cat:16}"].vectors(TIMESTEPS), lambda *_: (b, 16))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a {dog}", r"'a \{dog\}' names \{dog\}; the concepts are: \{mug\}, \{cat\}"),
        ("a {}", r"names \{\}; the concepts are: \{mug\}"),
        ("a photo", r"'a photo' has no \{mug\}.*write \{mug\} where"),
        ("a {mug:200}", r"\{mug:200\}: truncation 200: must lie in 0\.\.128"),
        ("a {my mug}", r"has \{my mug\}; a concept is written \{name\}"),
        ("a {mug:x}", r"has \{mug:x\}"),
    ],
)
def test_prompts_that_name_none_or_unknown_concepts(prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        known = {"mug": neti(0), "cat": word(1)}
        require_concept(Prompt.parse(prompt), known)
        concepts_in(Prompt.parse(prompt), known)
