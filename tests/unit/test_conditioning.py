"""Conditioning, against a stock text encoder whose embedding table holds the concept as an extra word."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.conditioning.conditioning import (
    ConceptVectors,
    Conditioning,
    condition,
    plain_condition,
    tokenize,
)

L = 16
PROMPT = "a photo of a <toy> in the style of Monet"


def vectors(layers: int, batch: int, width: int = 32, seed: int = 0, bypass: bool = True) -> ConceptVectors:
    generator = torch.Generator().manual_seed(seed)
    words, directions = torch.randn(2, layers, batch, width, generator=generator) * 0.05
    return ConceptVectors(words, directions if bypass else None)


def bypass_of(concept: ConceptVectors) -> Tensor:
    assert concept.bypass is not None
    return concept.bypass


@torch.no_grad()
def stock_states(backbone: Backbone, prompt: str, words: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What stock CLIP gives, (before, after) its final LayerNorm, with each word [D] as a new row of its table."""
    tokens = tokenize(backbone.tokenizer, [prompt], list(words))
    encoder: Any = copy.deepcopy(backbone.text_encoder)
    size = encoder.get_input_embeddings().num_embeddings
    encoder.resize_token_embeddings(size + len(words), mean_resizing=False)
    ids = tokens.ids.clone()
    for i, (placeholder, word) in enumerate(words.items()):
        encoder.get_input_embeddings().weight[size + i] = word
        ids[tokens.slots[placeholder]] = size + i
    out = encoder(ids, output_hidden_states=True)
    return out.hidden_states[-1][0], out.last_hidden_state[0]


@pytest.mark.parametrize("chunk_rows", [None, 5])
def test_all_layers_at_once_equal_one_stock_call_each(tiny_backbone: Backbone, chunk_rows: int | None) -> None:
    concept = vectors(L, 3)
    tokens = tokenize(tiny_backbone.tokenizer, [PROMPT], ["<toy>"])  # one prompt meets three timesteps
    both = condition(tiny_backbone.text, tokens, {"<toy>": concept}, tiny_backbone.frame, chunk_rows)
    assert both.keys.shape == both.values.shape == (L, 3, 77, 32)
    slot = tokens.slots["<toy>"][0]
    for layer in (0, 6, 15):
        for b in range(3):
            states, encoding = stock_states(tiny_backbone, PROMPT, {"<toy>": concept.words[layer, b]})
            torch.testing.assert_close(both.keys[layer, b], encoding, rtol=1e-4, atol=1e-5)
            h, v = states[slot][0], bypass_of(concept)[layer, b]
            shifted = tiny_backbone.text.finish(h + 0.2 * h.norm() * v / v.norm())
            torch.testing.assert_close(both.values[layer, b, slot][0], shifted, rtol=1e-4, atol=1e-5)
            assert torch.equal(both.values[layer, b, ~slot], both.keys[layer, b, ~slot])


def test_several_concepts_and_one_twice(tiny_backbone: Backbone) -> None:
    prompt = "<toy> and a <cat> on a <toy>"
    concepts = {"<toy>": vectors(L, 1), "<cat>": vectors(1, 1, seed=1, bypass=False)}
    tokens = tokenize(tiny_backbone.tokenizer, [prompt], list(concepts))
    both = condition(tiny_backbone.text, tokens, concepts, tiny_backbone.frame)
    for layer in (0, 9):
        words = {"<toy>": concepts["<toy>"].words[layer, 0], "<cat>": concepts["<cat>"].words[0, 0]}
        _, encoding = stock_states(tiny_backbone, prompt, words)
        torch.testing.assert_close(both.keys[layer, 0], encoding, rtol=1e-4, atol=1e-5)
    changed = (both.keys != both.values).any(dim=-1)[0, 0]
    assert torch.equal(changed, tokens.slots["<toy>"][0]), "only a concept with a bypass shifts values"


def test_prompts_of_one_batch_keep_to_themselves(tiny_backbone: Backbone) -> None:
    prompts = [PROMPT, "<toy>", "a photo of a <toy> and a <cat>"]
    concepts = {"<toy>": vectors(L, 3), "<cat>": vectors(L, 3, seed=1)}
    tokens = tokenize(tiny_backbone.tokenizer, prompts, list(concepts))
    together = condition(tiny_backbone.text, tokens, concepts, tiny_backbone.frame)
    for b, prompt in enumerate(prompts):
        own = {name: ConceptVectors(c.words[:, b : b + 1], bypass_of(c)[:, b : b + 1]) for name, c in concepts.items()}
        alone = condition(
            tiny_backbone.text, tokenize(tiny_backbone.tokenizer, [prompt], list(own)), own, tiny_backbone.frame
        )
        torch.testing.assert_close(together.keys[:, b], alone.keys[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.values[:, b], alone.values[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layers", "batch", "rows"), [(1, 1, 1), (L, 1, L), (1, 4, 4), (L, 4, 4 * L)])
def test_the_encoder_runs_only_as_many_rows_as_differ(
    tiny_backbone: Backbone, layers: int, batch: int, rows: int
) -> None:
    seen: list[int] = []
    encoder: Any = tiny_backbone.text_encoder
    encoder.encoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    tokens = tokenize(tiny_backbone.tokenizer, [PROMPT], ["<toy>"])
    both = condition(tiny_backbone.text, tokens, {"<toy>": vectors(layers, batch)}, tiny_backbone.frame)
    assert seen == [rows]
    assert both.keys.shape == both.values.shape == (L, batch, 77, 32)
    assert both.packed().shape == (batch, L * 2 * 77 + 3, 32)


def test_plain_prompts_equal_the_stock_encoder(tiny_backbone: Backbone) -> None:
    plain = plain_condition(tiny_backbone.text, ["", "a photo"], tiny_backbone.frame)
    ids = tokenize(tiny_backbone.tokenizer, ["", "a photo"], []).ids
    expected = tiny_backbone.text_encoder(ids).last_hidden_state
    for layer in (0, 15):
        torch.testing.assert_close(plain.keys[layer], expected)
    assert plain.values is plain.keys and plain.keys.stride(0) == 0, "views: no copy per layer"


def test_packed_holds_each_layers_keys_then_values() -> None:
    keys = torch.arange(L * 2 * 3.0).view(L, 2, 3, 1)
    packed = Conditioning(keys, -keys).packed()
    assert packed.shape == (2, L * 2 * 3 + 3, 1)
    for layer in range(L):
        own = packed[:, layer * 6 : layer * 6 + 6]
        assert torch.equal(own[:, :3], keys[layer]) and torch.equal(own[:, 3:], -keys[layer])


def test_a_zero_bypass_shifts_nothing_and_has_finite_gradients(tiny_backbone: Backbone) -> None:
    words = torch.randn(L, 1, 32).requires_grad_()
    bypass = torch.zeros(L, 1, 32).requires_grad_()
    tokens = tokenize(tiny_backbone.tokenizer, [PROMPT], ["<toy>"])
    both = condition(tiny_backbone.text, tokens, {"<toy>": ConceptVectors(words, bypass)}, tiny_backbone.frame)
    torch.testing.assert_close(both.values, both.keys)
    both.packed().square().sum().backward()
    assert words.grad is not None and words.grad.isfinite().all()
    assert bypass.grad is not None and bypass.grad.isfinite().all()


def test_only_the_direction_of_the_bypass_counts(tiny_backbone: Backbone) -> None:
    tokens = tokenize(tiny_backbone.tokenizer, [PROMPT], ["<toy>"])
    concept = vectors(L, 1)
    scaled = ConceptVectors(concept.words, bypass_of(concept) * 7)
    one, other = (
        condition(tiny_backbone.text, tokens, {"<toy>": v}, tiny_backbone.frame).values for v in (concept, scaled)
    )
    torch.testing.assert_close(one, other)


def test_the_embedding_table_is_only_read(tiny_backbone: Backbone) -> None:
    table = tiny_backbone.text_encoder.embeddings.token_embedding.weight
    before = table.clone()
    tokens = tokenize(tiny_backbone.tokenizer, [PROMPT], ["<toy>"])
    concept = vectors(L, 1)
    concept.words.requires_grad_()
    condition(tiny_backbone.text, tokens, {"<toy>": concept}, tiny_backbone.frame).packed().sum().backward()
    assert concept.words.grad is not None
    assert table.grad is None and torch.equal(table, before)


def test_conditioning_has_the_text_encoders_dtype(tiny_backbone: Backbone) -> None:
    tokens = tokenize(tiny_backbone.tokenizer, [PROMPT], ["<toy>"])
    full = condition(tiny_backbone.text, tokens, {"<toy>": vectors(L, 1)}, tiny_backbone.frame).packed()
    tiny_backbone.to("cpu", torch.bfloat16)
    half = condition(tiny_backbone.text, tokens, {"<toy>": vectors(L, 1)}, tiny_backbone.frame).packed()
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.1)


def test_mismatched_arguments_are_refused(tiny_backbone: Backbone) -> None:
    tokens = tokenize(tiny_backbone.tokenizer, [PROMPT], ["<toy>"])
    with pytest.raises(ValueError, match=r"vectors for \[\]"):
        condition(tiny_backbone.text, tokens, {}, tiny_backbone.frame)
    with pytest.raises(ValueError, match="1 or 16 places"):
        condition(tiny_backbone.text, tokens, {"<toy>": vectors(12, 1)}, tiny_backbone.frame)


def test_alpha_may_differ_from_layer_to_layer_and_time_to_time(tiny_backbone: Backbone) -> None:
    words, bypass = vectors(L, 3).words, vectors(L, 3).bypass
    alpha = torch.rand(L, 3, 1, generator=torch.Generator().manual_seed(1))
    tokens = tokenize(tiny_backbone.tokenizer, [PROMPT], ["<toy>"])
    together = condition(
        tiny_backbone.text, tokens, {"<toy>": ConceptVectors(words, bypass, alpha)}, tiny_backbone.frame
    )
    for layer, b in ((0, 0), (6, 2), (15, 1)):
        single = ConceptVectors(words, bypass, float(alpha[layer, b]))
        expected = condition(tiny_backbone.text, tokens, {"<toy>": single}, tiny_backbone.frame).values[layer, b]
        torch.testing.assert_close(together.values[layer, b], expected, rtol=1e-4, atol=1e-5)


def test_a_key_lock_reads_keys_from_another_word(tiny_backbone: Backbone) -> None:
    tokens = tokenize(tiny_backbone.tokenizer, [PROMPT], ["<toy>"])
    word = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(3)) * 0.05
    concept = vectors(L, 2)
    locked = replace(concept, key_words=word)
    one, both = (condition(tiny_backbone.text, tokens, {"<toy>": v}, tiny_backbone.frame) for v in (concept, locked))
    only = condition(tiny_backbone.text, tokens, {"<toy>": ConceptVectors(word)}, tiny_backbone.frame)
    assert torch.equal(both.values, one.values)
    torch.testing.assert_close(both.keys, only.keys.expand_as(both.keys))
    assert not torch.allclose(both.keys, one.keys, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_concept_of_several_vectors_takes_several_positions(tiny_backbone: Backbone, batch: int) -> None:
    """Also twice in a prompt: the same as that many concepts side by side."""
    words = torch.randn(L, batch, 2, 32, generator=torch.Generator().manual_seed(4)) * 0.05
    tokens = tokenize(tiny_backbone.tokenizer, ["a <toy> and <toy>"], {"<toy>": 2})
    assert tokens.slots["<toy>"].sum() == 4
    together = condition(tiny_backbone.text, tokens, {"<toy>": ConceptVectors(words)}, tiny_backbone.frame)
    apart = {"<a>": ConceptVectors(words[:, :, 0]), "<b>": ConceptVectors(words[:, :, 1])}
    tokens = tokenize(tiny_backbone.tokenizer, ["a <a><b> and <a><b>"], list(apart))
    expected = condition(tiny_backbone.text, tokens, apart, tiny_backbone.frame)
    torch.testing.assert_close(together.keys, expected.keys)
    assert together.slots is not None and together.slots.sum() == 4 * batch
