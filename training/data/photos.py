"""The photos of a folder: which of its files they are, and what each of the others is."""

from __future__ import annotations

from enum import Enum, auto
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ...utils.errors import UserError
from ...utils.images.formats import foreign_format, is_lfs_pointer, open_image
from .masks import is_mask

IMAGE_SUFFIXES = {
    *{".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif"},
    *{".jp2", ".j2k", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"},
}
FOREIGN_SUFFIXES = {
    *{".heic", ".heif", ".hif", ".jxl", ".psd", ".psb", ".xcf"},
    *{".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"},  # raw photos of cameras
}


MASK = "a mask, which data.masks = folder uses"


class _Kind(Enum):
    image = auto()  # or meant to be one: what is broken is named when it is read
    refused = auto()  # meant as a photo, but it cannot be one
    other = auto()


def find_images(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The photos of a folder in the order of their names, and what everything else in it is: path -> a few words.

    Content decides, so a JPEG named .heic is a photo. Masks are none, see `masks.is_mask`. Raises UserError if the
    folder is missing or holds no photo, for formats of photos that are not read, and for links that lead nowhere: all
    these were put there to be learned from.
    """
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise UserError(f"the image folder {folder} does not exist; check data.train_data_dir") from None
    except NotADirectoryError:
        raise UserError(f"{folder} is a file; data.train_data_dir must be the folder that holds the images") from None
    except OSError as error:
        raise UserError(f"the image folder {folder} cannot be read: {error.strerror}") from None
    found = {entry: _examine(entry) for entry in entries}
    if refused := [f"{entry} {words}" for entry, (kind, words) in found.items() if kind is _Kind.refused]:
        raise UserError("\n".join(refused))
    stems = {entry.stem for entry, (kind, _) in found.items() if kind is _Kind.image}
    paths = [entry for entry, (kind, _) in found.items() if kind is _Kind.image and not is_mask(entry, stems)]
    if not paths:
        raise UserError(_no_image(folder, entries))
    return paths, {
        entry: words or "a mask, which data.masks = folder uses"
        for entry, (_, words) in found.items()
        if entry not in paths
    }


def _examine(entry: Path) -> tuple[_Kind, str]:
    """What a folder's entry is, and that in words: none for an image, what to do about it for what is refused."""
    suffix = entry.suffix.lower()
    meant = suffix in IMAGE_SUFFIXES | FOREIGN_SUFFIXES
    if entry.name.startswith("."):  # macOS's ._photo.jpg carries a photo's name and holds none
        return _Kind.other, "not an image"
    if entry.is_dir():
        inside = _images_inside(entry)
        return _Kind.other, f"a folder, whose {inside} images are not used" if inside else "a folder"
    if entry.is_symlink() and not entry.exists():
        words = f"is a link to {entry.readlink()}, which does not exist; copy the photo itself there"
        return (_Kind.refused, words) if meant else (_Kind.other, "a link that leads nowhere")
    if not entry.is_file():
        return _Kind.other, "not a file"
    try:
        foreign, pointer = foreign_format(entry), is_lfs_pointer(entry)
    except OSError:
        return (_Kind.image, "") if meant else (_Kind.other, "a file that cannot be opened")
    content = _content(entry)
    if foreign:
        return _Kind.refused, f"cannot be read here: its format is {foreign}; convert it to JPEG or PNG"
    if suffix in FOREIGN_SUFFIXES and content in (None, "TIFF") and not pointer:  # a raw photo passes for a TIFF
        return _Kind.refused, "cannot be read here; convert it to JPEG or PNG"
    return (_Kind.image, "") if content or meant else (_Kind.other, "not an image")


def _content(entry: Path) -> str | None:
    """The format of what a file holds, by Pillow's name; None if that is no image."""
    try:
        with open_image(entry) as image:
            return None if image.format == "PPM" else image.format  # its two letters may begin any text
    except Image.DecompressionBombError:
        return "too large"
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return None


def _images_inside(folder: Path) -> int:
    """How many files of a folder are named as images; 0 if it cannot be listed."""
    try:
        return sum(entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.iterdir())
    except OSError:
        return 0


def _no_image(folder: Path, entries: list[Path]) -> str:
    """The error for a folder without images; it names the subfolders that hold some."""
    counts = {entry.name: _images_inside(entry) for entry in entries if entry.is_dir()}
    if inside := [f"{name!r} holds {count}" for name, count in counts.items() if count]:
        return (
            f"the image folder {folder} holds no image itself, but its folder {', '.join(inside[:5])}; give the folder "
            "that holds the images as data.train_data_dir"
        )
    found = f"only {', '.join(entry.name for entry in entries[:5])}" if entries else "it is empty"
    return f"the image folder {folder} holds no image ({found}); put three to five images of the concept there"
