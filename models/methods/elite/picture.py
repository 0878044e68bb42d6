"""The picture a concept is encoded from, and where in it the object is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....utils.errors import UserError
from ....utils.images import load_alpha, load_image


def read_picture(image: Path, mask: Path | None = None) -> tuple[Tensor, Tensor | None]:
    """The picture [3,H,W] in 0..1 and its mask [1,H,W], 0 or 1: that of a file, else the picture's own transparency.

    None for the mask where there is neither. Raises UserError for files that cannot be read, and for a mask that is
    empty, covers everything, is coloured or has another size than the picture.
    """
    picture = load_image(image)
    if mask is not None:
        shape = _grey(mask)
        if shape.size != picture.size:
            raise UserError(
                f"the mask {mask} has {shape.width} x {shape.height} pixels, the image {picture.width} x "
                f"{picture.height}; save it at the image's size"
            )
        source = f"the mask {mask}"
    else:
        transparency = load_alpha(image)
        if transparency is None:
            return _to_tensor(picture), None
        shape, source = transparency, f"the transparency of {image}"
    inside = _to_tensor(shape) > 0.5
    if not inside.any():
        raise UserError(f"{source} is empty: nowhere brighter than half; white is the object")
    if inside.all():
        raise UserError(f"{source} covers everything: nothing is left out; give none for the word alone")
    return _to_tensor(picture), inside.float()


def _grey(path: Path) -> Image.Image:
    """A mask file as "L"; one that was saved with three equal channels counts as grey."""
    mask = load_image(path)
    red, green, blue = mask.split()
    if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
        raise UserError(f"the mask {path} has several channels that differ; save it in grey, white where the object is")
    return red


def _to_tensor(image: Image.Image) -> Tensor:
    pixels = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)
