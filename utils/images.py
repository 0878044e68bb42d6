"""Images in: any photo a user may have to RGB, and RGB to a square."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .config.choices import Choice
from .errors import UserError
from .grid import labelled_grid

__all__ = ["SquareMode", "labelled_grid", "load_image", "to_square"]


class SquareMode(Choice):
    """How an image becomes a square: stretched (the public code's way), its centre cropped, or padded with white."""

    stretch = "stretch"
    crop = "crop"
    pad = "pad"


def load_image(path: Path | str) -> Image.Image:
    """The image in a file as upright 8-bit RGB, transparency laid on white, the first frame of an animation.

    Differs from the reference: it ignores the EXIF rotation, shows whatever colour hides under transparent pixels, and
    saturates 16-bit images. Raises UserError, naming the file, if it is missing, broken, cut short, of a kind that has
    no defined way to RGB, or so large that unpacking it could exhaust the memory.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise UserError(f"the image {path} does not exist; check the path") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise UserError(f"the image {path} has more than {limit} million pixels; scale it down first") from None
    except Exception as error:  # a broken file makes its decoder raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the image {path} cannot be read ({reason}); replace it or take it out of the folder"
        ) from None


def to_square(image: Image.Image, size: int, mode: SquareMode = SquareMode.stretch) -> Image.Image:
    """The image as `size` x `size` pixels, resampled bicubically."""
    if mode is SquareMode.pad:
        return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color="white")
    if mode is SquareMode.crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no fixed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey values 0..65535 to 0..255; Pillow's own conversion would clip them at 255."""
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("32-bit pixels have no fixed range; save it with 8 or 16 bits")
    return Image.fromarray(np.round(grey / 257).astype(np.uint8)).convert("RGB")
