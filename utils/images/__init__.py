"""Images in: any photo a user may have to upright sRGB, and that to a square."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..config.choices import Choice
from ..errors import UserError
from ..grid import labelled_grid
from .formats import foreign_format, is_lfs_pointer, open_image

__all__ = ["ReadImage", "SquareMode", "labelled_grid", "load_alpha", "load_image", "read_image", "to_square"]

MAX_RATIO = 4  # of the sides of a bucket
ORIENTATION = 0x0112  # the EXIF tag; how to bring each of its values upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SquareMode(Choice):
    """How an image becomes a square: stretched (the public code's way), its centre cropped, or padded with white.

    Or that it does not: bucket gives it about as many pixels in the one of a few shapes that is closest to its own.
    """

    stretch = "stretch"
    crop = "crop"
    pad = "pad"
    bucket = "bucket"


class ReadImage(NamedTuple):
    """An image, and a remark on each thing in its file that was not used."""

    image: Image.Image
    remarks: list[str]


def load_image(path: Path | str, background: str = "white") -> Image.Image:
    """The image in a file as upright 8-bit sRGB, transparency laid on `background`, the first frame of an animation.

    Differs from the reference: it ignores the EXIF rotation and the colour profile, shows whatever colour hides under
    transparent pixels, and saturates 16-bit images. Raises UserError, naming the file, if it is missing, broken, cut
    short, of a kind that has no defined way to RGB, or so large that unpacking it could exhaust the memory.
    """
    return read_image(path, background).image


def read_image(path: Path | str, background: str = "white") -> ReadImage:
    """As `load_image`, with remarks on unusable EXIF data or colour profiles and on further frames."""
    remarks: list[str] = []
    try:
        with open_image(path) as image:
            if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a phone's photo and its preview
                remarks.append("only its first frame is used")
            return ReadImage(_to_rgb(_upright(image, remarks), background, remarks), remarks)
    except Exception as error:  # a broken file makes its decoder raise almost anything
        raise _unreadable(path, error) from None


def load_alpha(path: Path | str) -> Image.Image | None:
    """The upright transparency of an image, mode L, 255 where it is opaque; None if it has none.

    Errors as `load_image`.
    """
    try:
        with open_image(path) as image:
            has_alpha = image.has_transparency_data
            return _upright(image, []).convert("RGBA").getchannel("A") if has_alpha else None
    except Exception as error:
        raise _unreadable(path, error) from None


def to_square(
    image: Image.Image, size: int, mode: SquareMode = SquareMode.stretch, padding: str | int = "white"
) -> Image.Image:
    """The image as `size` x `size` pixels, or as `bucket_size` says, resampled bicubically."""
    if mode is SquareMode.bucket:
        return ImageOps.fit(image, bucket_size(image.size, size), Image.Resampling.BICUBIC)
    if mode is SquareMode.pad:
        return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=padding)
    if mode is SquareMode.crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image.resize((size, size), Image.Resampling.BICUBIC)


def bucket_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """The width and height of at most `resolution`^2 pixels that are closest to the shape of `size`.

    Both are multiples of 64, as U-Nets want them, if the resolution is one from 256 on, else of 8. The sides of a
    bucket are at most MAX_RATIO : 1, so that a longer image is cropped.
    """
    step = 64 if resolution >= 256 and resolution % 64 == 0 else 8
    widths = range(step, resolution**2 // step + 1, step)
    sizes = [(width, resolution**2 // width // step * step) for width in widths]
    sizes = [(width, height) for width, height in sizes if 1 / MAX_RATIO <= width / height <= MAX_RATIO]
    ratio = size[0] / size[1]
    return min(sizes, key=lambda other: (abs(math.log(ratio * other[1] / other[0])), -other[0] * other[1]))


def _unreadable(path: Path | str, error: Exception) -> UserError:
    """The one line for an image that cannot be read."""
    if isinstance(error, FileNotFoundError):
        target = f"it is a link to {Path(path).readlink()}, which" if Path(path).is_symlink() else "it"
        return UserError(f"the image {path} cannot be read: {target} does not exist; check the path")
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        return UserError(f"the image {path} has more than {limit} million pixels; scale it down first")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        if is_lfs_pointer(path):
            return UserError(
                f"the image {path} is a Git LFS pointer, not the image itself; run `git lfs pull` where it comes from"
            )
        foreign = foreign_format(path)
        empty = Path(path).stat().st_size == 0
        reason = f"its format, {foreign}, is not read here" if foreign else "it is empty" if empty else "it is no image"
    return UserError(f"the image {path} cannot be read ({reason}); replace it or take it out of the folder")


def _upright(image: Image.Image, remarks: list[str]) -> Image.Image:
    """The loaded image, turned as its EXIF data say. (Pillow's own function rewrites them too; nonsense stops it.)"""
    image.load()
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:
        remarks.append("its EXIF data cannot be read, so it is taken to be upright")
        return image
    method = UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, background: str, remarks: list[str]) -> Image.Image:
    profile: bytes | None = image.info.get("icc_profile")
    alpha = None
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no fixed range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(image)
    else:
        if image.has_transparency_data:
            alpha = image.convert("RGBA").getchannel("A")
        if image.mode != "CMYK":
            image = image.convert("L" if image.mode in ("L", "LA", "La") else "RGB")
    image = _to_srgb(image, profile, remarks).convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return image


def _to_srgb(image: Image.Image, profile: bytes | None, remarks: list[str]) -> Image.Image:
    """An L, RGB or CMYK image with its colours as the profile means them; as it is, with a remark, if that fails."""
    if profile is None:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            image = image.convert("RGB")
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None  # it is only None for a conversion in place
        return converted
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError):
        remarks.append("its colour profile cannot be used, so its colours are taken to be sRGB")
        return image


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey values 0..65535 to 0..255; Pillow's own conversion would clip them at 255."""
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("32-bit pixels have no fixed range; save it with 8 or 16 bits")
    return Image.fromarray(np.round(grey / 257).astype(np.uint8))
