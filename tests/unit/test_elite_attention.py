"""How a layer reads an encoded concept: the gate, the strength, what an empty mask gives."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from neti.models.attention.layers import Layer
from neti.models.methods.elite.mappers import GlobalMapper, LocalMapper
from neti.models.methods.elite.projection import AttentionNorm, ELITEProjection

D, HEADS, PIXELS, TOKENS, PATCHES = 12, 2, 9, 7, 16
LAYER = Layer(0, "IN01", "down_blocks.0.attentions.0.transformer_blocks.0.attn2", 1, 8, 0)


@pytest.fixture
def attn() -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=8, cross_attention_dim=D, heads=HEADS, dim_head=4)


def projection(**settings: object) -> ELITEProjection:
    torch.manual_seed(1)
    mappers = GlobalMapper((LAYER,), 16, D), LocalMapper((LAYER,), 16, D)
    return ELITEProjection(*mappers, image_tokens=PATCHES, **settings)  # type: ignore[arg-type]


def read(elite: ELITEProjection, attn: Attention, image: Tensor, slots: Tensor) -> Tensor:
    torch.manual_seed(2)
    query, key = torch.randn(len(slots), HEADS, PIXELS, 4), torch.randn(len(slots), HEADS, TOKENS, 4)
    extra = elite.extra(attn, LAYER, query, key, slots, image)
    return torch.zeros_like(query) if extra is None else extra


def slots_at(*positions: int) -> Tensor:
    return torch.stack([(torch.arange(TOKENS) == position).long() for position in positions])


def test_keys_and_values_are_the_encoders_own_for_every_token(attn):
    elite, text = projection(), torch.randn(2, TOKENS, D)
    keys, values = elite.project(attn, LAYER, text, text + 1, slots_at(2, 3))
    name = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_"
    tensors = elite.of_words.state_dict()
    torch.testing.assert_close(keys, text @ tensors[name + "k.weight"].T)
    torch.testing.assert_close(values, (text + 1) @ tensors[name + "v.weight"].T)


def test_patches_are_read_as_the_paper_says(attn):
    elite, image = projection(strength=0.7), torch.randn(1, PATCHES, D)
    torch.manual_seed(2)
    query, key = torch.randn(1, HEADS, PIXELS, 4), torch.randn(1, HEADS, TOKENS, 4)
    name = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_"
    local = elite.of_patches.state_dict()
    expected = torch.zeros_like(query)
    columns = [(query[0, h] @ key[0, h].T / 2).softmax(-1)[:, 4] for h in range(HEADS)]
    peak = torch.stack(columns).max()
    for h in range(HEADS):
        own = slice(4 * h, 4 * h + 4)
        patch_key = image[0] @ local[name + "k.weight"].T[:, own]
        patch_value = image[0] @ local[name + "v.weight"].T[:, own]
        weights = (query[0, h] @ patch_key.T / 2).softmax(-1)
        expected[0, h] = 0.7 * (columns[h] / peak)[:, None] * weights @ patch_value
    torch.testing.assert_close(elite.extra(attn, LAYER, query, key, slots_at(4), image), expected)


def test_the_extra_attention_is_linear_in_its_strength(attn):
    image, slots = torch.randn(2, PATCHES, D), slots_at(2, 3)
    once, twice = (read(projection(strength=s), attn, image, slots) for s in (0.4, 0.8))
    torch.testing.assert_close(twice, 2 * once)
    assert once.abs().max() > 0
    assert projection(strength=0).extra(attn, LAYER, once, once, slots, image) is None


def test_an_empty_mask_adds_exactly_nothing(attn):
    elite = projection(strength=1.5)
    of_nothing = elite.of_patches([torch.randn(2, 1 + PATCHES, 16) for _ in range(5)], torch.zeros(2, PATCHES, 1))
    assert not read(elite, attn, of_nothing, slots_at(2, 3)).any()


def test_a_row_without_the_concept_gets_exactly_nothing(attn):
    image = torch.randn(2, PATCHES, D)
    with_and_without = read(projection(), attn, image, torch.cat([slots_at(2), torch.zeros(1, TOKENS).long()]))
    assert with_and_without[0].any() and not with_and_without[1].any()


def test_the_gate_lies_in_0_to_1_and_peaks_in_every_sample():
    weights = torch.rand(3, HEADS, PIXELS, TOKENS).softmax(-1) * torch.tensor([1.0, 0.1, 0.01])[:, None, None, None]
    gate = projection().gate(weights, slots_at(1, 2, 3))
    assert gate.min() >= 0
    assert torch.equal(gate.amax((1, 2, 3)), torch.ones(3))
    in_batch = projection(norm=AttentionNorm.batch).gate(weights, slots_at(1, 2, 3))
    assert in_batch.max() == 1 and in_batch[2].max() < 0.1


def test_per_sample_a_picture_does_not_depend_on_the_others_of_its_batch(attn):
    elite, slots = projection(), slots_at(1, 5)
    torch.manual_seed(5)
    query, key = torch.randn(2, HEADS, PIXELS, 4), torch.randn(2, HEADS, TOKENS, 4)
    image = torch.randn(2, PATCHES, D)
    together = elite.extra(attn, LAYER, query, key, slots, image)
    for i in range(2):
        one = slice(i, i + 1)
        torch.testing.assert_close(
            elite.extra(attn, LAYER, query[one], key[one], slots[one], image[one]), together[one]
        )


def test_of_several_words_only_the_first_gates():
    weights = torch.rand(1, HEADS, PIXELS, TOKENS)
    slots = torch.tensor([[0, 1, 1, 0, 1, 1, 0]])  # a placeholder of two words, twice
    gate = projection(words=2).gate(weights, slots)
    column = weights[..., 1] + weights[..., 4]
    torch.testing.assert_close(gate[..., 0], column / column.max())
