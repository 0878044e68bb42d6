"""A tiny ELITE encoder of real classes, with random weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from neti.models.attention.layers import Layer
from neti.models.methods.elite.encoder import Encoder
from neti.models.methods.elite.mappers import GlobalMapper, LocalMapper
from neti.models.methods.elite.vision import VisionFeatures

SIDE, PATCH, WIDTH = 32, 8, 16  # 4 x 4 patches


def tiny_vision(seed: int = 0) -> VisionFeatures:
    """A vision tower of six layers, read at the same sixths of its depth as the official one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=WIDTH,
                intermediate_size=32,
                num_hidden_layers=6,
                num_attention_heads=2,
                image_size=SIDE,
                patch_size=PATCH,
            )
        )
    return VisionFeatures(tower)


def tiny_encoder(layers: Sequence[Layer], text_width: int, *, local: bool = True, seed: int = 1) -> Encoder:
    """An encoder for a U-Net with these layers; its matrices are random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        of_words = GlobalMapper(layers, WIDTH, text_width)
        of_patches = LocalMapper(layers, WIDTH, text_width) if local else None
    return Encoder(tiny_vision(), of_words, of_patches)
