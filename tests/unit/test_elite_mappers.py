"""The networks of ELITE: which feature moves which word, what a mask does, and the official names."""

from __future__ import annotations

import pytest
import torch
from tiny_elite import WIDTH, tiny_encoder, tiny_vision

from neti.models.attention.layers import Layer
from neti.models.methods.elite.encoder import patch_mask
from neti.models.methods.elite.mappers import GlobalMapper, LocalMapper
from neti.models.methods.elite.vision import default_layers
from neti.utils.errors import UserError

LAYERS = (Layer(0, "IN01", "down_blocks.0.attentions.0.transformer_blocks.0.attn2", 1, 8, 0),)
D = 12


def random_features(batch: int = 2, patches: int = 16) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return [torch.randn(batch, 1 + patches, WIDTH) for _ in range(5)]


def test_features_are_the_towers_own_states_the_deepest_first():
    vision = tiny_vision()
    assert vision.layers == (6, 1, 2, 3, 4) and default_layers(24) == (24, 4, 8, 12, 16)
    pixels = torch.rand(2, 3, 32, 32)
    features = vision(pixels)
    assert [tuple(feature.shape) for feature in features] == [(2, 17, WIDTH)] * 5
    tower = vision.tower
    states = tower.pre_layrnorm(tower.embeddings((pixels - vision.mean) / vision.std))
    by_hand = [states]
    for layer in tower.encoder.layers:
        states = layer(states, attention_mask=None)
        states = states[0] if isinstance(states, tuple) else states
        by_hand.append(states)
    for feature, depth in zip(features, vision.layers, strict=True):
        torch.testing.assert_close(feature, by_hand[depth])


def test_pictures_of_any_size_are_seen():
    assert tiny_vision()(torch.rand(1, 3, 50, 70))[0].shape == (1, 17, WIDTH)


def test_feature_layers_that_the_tower_lacks_are_an_error():
    from neti.models.methods.elite.vision import VisionFeatures

    with pytest.raises(UserError, match=r"feature layers \[24, 4, 8, 12, 16\]"):
        VisionFeatures(tiny_vision().tower, (24, 4, 8, 12, 16))


def test_feature_j_moves_word_j_alone():
    mapper, features = GlobalMapper(LAYERS, WIDTH, D), random_features()
    words = mapper(features)
    assert words.shape == (2, 5, D)
    for j in range(5):
        changed = [feature + 1 if i == j else feature for i, feature in enumerate(features)]
        differs = (mapper(changed) != words).any(-1).any(0)
        assert differs.tolist() == [i == j for i in range(5)]


def test_a_word_is_its_formula():
    mapper, features = GlobalMapper(LAYERS, WIDTH, D), random_features()
    of_cls, of_patches = mapper.mapping_2(features[2][:, 0]), mapper.mapping_patch_2(features[2][:, 1:])
    torch.testing.assert_close(mapper(features)[:, 2], of_cls + of_patches.sum(1) / 16)


def test_words_do_not_see_the_order_of_patches_and_patches_move_with_it():
    order = torch.tensor([0, *(1 + torch.randperm(16)).tolist()])
    features = random_features()
    shuffled = [feature[:, order] for feature in features]
    of_words, of_patches = GlobalMapper(LAYERS, WIDTH, D), LocalMapper(LAYERS, WIDTH, D)
    torch.testing.assert_close(of_words(shuffled), of_words(features))
    everywhere = torch.ones(2, 16, 1)
    moved = of_patches(features, everywhere)[:, order[1:] - 1]
    torch.testing.assert_close(of_patches(shuffled, everywhere), moved)


def test_patches_are_zero_outside_the_mask_and_only_there():
    mask = (torch.arange(16) % 3 == 0).float()[None, :, None].expand(2, -1, -1)
    patches = LocalMapper(LAYERS, WIDTH, D)(random_features(), mask)
    assert torch.equal((patches != 0).any(-1, keepdim=True).float(), mask)


def test_mask_takes_the_nearest_pixel_row_by_row():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2, 4:6] = 1  # the first row's third patch, on a grid of 4 x 4
    assert patch_mask(mask, 4)[0, :, 0].nonzero().flatten().tolist() == [2]


def test_encoding_a_batch_is_encoding_its_pictures_one_by_one():
    encoder = tiny_encoder(LAYERS, D)
    pixels, masks = torch.rand(3, 3, 32, 32), (torch.rand(3, 1, 32, 32) > 0.4).float()
    one_by_one = [encoder.words(pixels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(encoder.words(pixels), torch.cat(one_by_one), atol=1e-5, rtol=1e-5)
    one_by_one = [encoder.patches(pixels[i : i + 1], masks[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(encoder.patches(pixels, masks), torch.cat(one_by_one), atol=1e-5, rtol=1e-5)


def test_patches_do_not_see_the_ground():
    encoder = tiny_encoder(LAYERS, D)
    pixels, mask = torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    other_ground = pixels * mask + torch.rand(1, 3, 32, 32) * (1 - mask)
    assert torch.equal(encoder.patches(pixels, mask), encoder.patches(other_ground, mask))
