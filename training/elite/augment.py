"""What keeps the mappers from learning pixels by heart: the encoder's input is turned, moved, bent and blurred.

Strengths are those of the official recipe, as shares of the side where they are lengths.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def augment_image(image: Tensor, rng: np.random.Generator) -> Tensor:
    """The global mapper's input [3,I,I]: mirrored (half), turned by up to 20 degrees, blurred and bent (0.3)."""
    if rng.random() < 0.5:
        image = image.flip(-1)
    image = warp(image, degrees=rng.uniform(-20, 20), bend=rng if rng.random() < 0.3 else None)
    return blur(image) if rng.random() < 0.3 else image


def augment_object(image: Tensor, mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The local mapper's input [3,I,I] and its mask [1,I,I], alike: enlarged and cropped, turned, moved, each by half.

    The picture is masked afterwards too: what comes in from the border is black.
    """
    zoom = rng.uniform(1, 256 / 224) if rng.random() < 0.5 else 1.0
    degrees = rng.uniform(-30, 30) if rng.random() < 0.5 else 0.0
    shift = rng.uniform(-60 / 512, 60 / 512, 2) if rng.random() < 0.5 else np.zeros(2)
    both = warp(torch.cat([image, mask]), degrees=degrees, shift=shift, zoom=zoom, fill="zeros")
    moved = (both[3:] > 0.5).float()
    return both[:3] * moved, moved


def warp(
    image: Tensor,
    *,
    degrees: float = 0.0,
    shift: np.ndarray | tuple[float, float] = (0.0, 0.0),
    zoom: float = 1.0,
    bend: np.random.Generator | None = None,
    fill: str = "reflection",
) -> Tensor:
    """An image [C,I,I] turned about its centre, enlarged, moved by `shift` (shares of the side) and, with `bend`, bent.

    fill: what comes in from outside, "reflection" or "zeros".
    """
    cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    x, y = (float(-2 * part) for part in shift)
    affine = torch.tensor([[cos, -sin, x], [sin, cos, y]])[None]
    where = F.affine_grid(affine, [1, *image.shape], align_corners=False)
    if bend is not None:
        coarse = torch.from_numpy(bend.normal(0, 0.04, (1, 2, 4, 4)).astype(np.float32))
        smooth = F.interpolate(coarse, image.shape[-2:], mode="bicubic", align_corners=False)
        where = where + smooth.permute(0, 2, 3, 1)
    return F.grid_sample(image[None], where, padding_mode=fill, align_corners=False)[0].clamp(0, 1)


def blur(image: Tensor) -> Tensor:
    """An image [C,I,I] averaged over a square of a fortieth of its side."""
    reach = max(1, image.shape[-1] // 80)
    padded = F.pad(image[None], [reach] * 4, mode="reflect")
    return F.avg_pool2d(padded, 2 * reach + 1, stride=1)[0]
