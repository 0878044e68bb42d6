"""From one picture, and where the object is in it, to a concept: no optimisation (ELITE, sections 3.1 to 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ....utils.hashing import weights_hash
from .mappers import GlobalMapper, LayerMatrices, LocalMapper
from .vision import VisionFeatures


@dataclass
class Encoder:
    """The three parts. Without `of_patches` only words are encoded.

    source: the name or path it was loaded by. tower: the hub's name of its vision tower; "": it has one of its own.
    """

    vision: VisionFeatures
    of_words: GlobalMapper
    of_patches: LocalMapper | None = None
    source: str = ""
    tower: str = ""

    @torch.no_grad()
    def words(self, pixels: Tensor) -> Tensor:
        """Pictures [B,3,H,W] in 0..1 -> words [B,5,D], float32."""
        words: Tensor = self.of_words(self.vision(pixels))
        return words

    @torch.no_grad()
    def patches(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """Pictures [B,3,H,W] in 0..1 with masks [B,1,H,W], 0 or 1 -> patches [B,E,D], zero outside the mask."""
        assert self.of_patches is not None
        patches: Tensor = self.of_patches(self.vision(pixels * mask), patch_mask(mask, self.vision.grid))
        return patches


def matrices_digest(matrices: LayerMatrices) -> str:
    """`sha256:<hex>` of one mapper's matrices, rounded to half precision: a smaller copy is the same mapper."""
    weights = matrices.state_dict().items()
    return weights_hash({name: weight.half() for name, weight in weights if not name.startswith("mapping_")})


def patch_mask(mask: Tensor, grid: int) -> Tensor:
    """Masks [B,1,H,W] -> [B,E,1]: the nearest pixel of each patch, row by row."""
    return F.interpolate(mask, (grid, grid), mode="nearest").flatten(2).transpose(1, 2)
