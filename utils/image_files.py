"""Image files that are either absent or complete, and that carry the recipe they were made from.

A file is written to a temporary name beside its place, flushed to the disk, and moved there in one step: whoever finds
an image under its name, a resumed run for one, may trust that it is whole. The recipe travels inside the PNG (one text
entry, JSON in UTF-8), so that it stays with the picture when the picture is mailed, renamed or sorted elsewhere.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, PngImagePlugin

from .errors import UserError
from .files import parse_json_object

METADATA_KEY = "neti"  # the PNG text entry; `exiftool image.png` and Pillow's `image.text` show it under this name


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a temporary file beside `path`, then move it to `path`; on failure an old file is untouched.

    Raises UserError (one line) where the folder cannot be written to or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free the place or choose another") from error
    finally:
        if temporary.parent.is_dir():  # else there is nothing to clean, and asking would hide the error above
            temporary.unlink(missing_ok=True)


def write_png(image: Image.Image, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write `image` as PNG with `metadata` (JSON-serialisable) inside, atomically."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    write_atomically(path, lambda file: image.save(file, format="PNG", pnginfo=text))


def write_json(value: object, path: Path) -> None:
    """Write `value` as readable UTF-8 JSON, atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What `write_png` put into the file, read from its header; None for any other file (foreign, broken, no PNG)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # no pixel is read
            with Image.open(path) as image:
                return parse_json_object(image.info[METADATA_KEY])
    except Exception:  # a broken file makes its decoder raise almost anything
        return None
