"""Images in and out: any user's photo to RGB, RGB to a square, squares to a labelled grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .choices import Choice


class SquareMode(Choice):
    """How an image becomes a square: stretched (the public code's way), its centre cropped, or padded with white."""

    stretch = "stretch"
    crop = "crop"
    pad = "pad"


def load_image(path: Path | str) -> Image.Image:
    return Image.open(path).convert("RGB")


def to_square(image: Image.Image, size: int, mode: SquareMode = SquareMode.stretch) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str], title: str = ""
) -> Image.Image:
    grid = Image.new("RGB", (sum(i.width for i in rows[0]), sum(r[0].height for r in rows)), "white")
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            grid.paste(tile, (x * tile.width, y * tile.height))
    return grid
