"""The two trained networks of ELITE: from the features of one picture to words, and to patches in text space.

Shapes: B batch, E patches, W width of the vision tower, D text width. Module names are those of the official files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention.layers import Layer
from .vision import FEATURES


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers as wide as the input, each with LayerNorm and LeakyReLU."""
    hidden = [module for _ in range(2) for module in (nn.Linear(inputs, inputs), nn.LayerNorm(inputs), nn.LeakyReLU())]
    return nn.Sequential(*hidden, nn.Linear(inputs, outputs))


class LayerMatrices(nn.Module):
    """Two matrices per cross-attention layer, from text space to its keys and values, in place of the U-Net's own."""

    def __init__(self, layers: Sequence[Layer], text_width: int) -> None:
        super().__init__()
        self.text_width = text_width
        self._copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        for layer in layers:
            for kind in ("k", "v"):
                self.add_module(matrix_name(layer, kind), nn.Linear(text_width, layer.width, bias=False))

    def copy_from(self, unet: Any, layers: Sequence[Layer]) -> None:
        """Start the matrices as the U-Net's own `to_k` and `to_v`."""
        with torch.no_grad():
            for layer in layers:
                attention = unet.get_submodule(layer.path)
                self.get_parameter(f"{matrix_name(layer, 'k')}.weight").copy_(attention.to_k.weight)
                self.get_parameter(f"{matrix_name(layer, 'v')}.weight").copy_(attention.to_v.weight)

    def project(self, layer: Layer, kind: Literal["k", "v"], states: Tensor) -> Tensor:
        """states [B,n,D] -> keys or values [B,n,width of the layer], on the states' device and in their dtype.

        A frozen matrix is copied there once. One that is trained stays float32 and is cast anew.
        """
        name = matrix_name(layer, kind)
        weight = self.get_parameter(f"{name}.weight")
        if weight.requires_grad:
            return F.linear(states, weight.to(states))
        key = (name, states.device, states.dtype)
        if key not in self._copies:
            with torch.inference_mode(False):  # made while drawing, it may serve a training step later
                self._copies[key] = weight.detach().to(states.device, states.dtype)
        return F.linear(states, self._copies[key])


class Mapper(LayerMatrices):
    """What both networks consist of: two MLPs per feature (CLS, patches), and the matrices that read their output."""

    def __init__(self, layers: Sequence[Layer], vision_width: int, text_width: int) -> None:
        super().__init__(layers, text_width)
        self.vision_width = vision_width
        for i in range(FEATURES):
            self.add_module(f"mapping_{i}", mlp(vision_width, text_width))
            self.add_module(f"mapping_patch_{i}", mlp(vision_width, text_width))

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Make what the MLPs give `factor` times as long, by their last layers."""
        for name, parameter in self.named_parameters():
            if name.startswith("mapping_") and ".6." in name:
                parameter.mul_(factor)

    def _mapped(self, features: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Per feature [B,1+E,W]: the mapped CLS state [B,1,D] and the mapped patches [B,E,D]."""
        for i, feature in enumerate(features):
            of_cls, of_patches = self.get_submodule(f"mapping_{i}"), self.get_submodule(f"mapping_patch_{i}")
            yield of_cls(feature[:, :1]), of_patches(feature[:, 1:])


class GlobalMapper(Mapper):
    """Five words of a picture. The first, of the deepest feature, is the concept; the others take up the rest."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Five features [B,1+E,W] -> words [B,5,D]: w_i = A_i(CLS) + mean of B_i(patch) over the patches."""
        return torch.cat([cls + patches.mean(1, keepdim=True) for cls, patches in self._mapped(features)], dim=1)


class LocalMapper(Mapper):
    """The masked object's patches in text space."""

    def forward(self, features: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Five features [B,1+E,W] of the object on black, mask [B,E,1] -> patches [B,E,D], zero outside the mask.

        The mean over the features of A_i(CLS) + B_i(patch): the CLS state tells every patch what the whole is.
        """
        return torch.stack([cls + patches for cls, patches in self._mapped(features)]).mean(0) * mask


def matrix_name(layer: Layer, kind: str) -> str:
    """The module that holds a layer's matrix: the official files write the path's dots as underscores."""
    return f"{layer.path.replace('.', '_')}_to_{kind}"
