"""PNG files that carry the recipe they were made from.

The recipe travels inside (one text entry, JSON in UTF-8), so that it stays with the picture when the picture is mailed,
renamed or sorted elsewhere.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ..files import parse_json_object, write_atomically

METADATA_KEY = "neti"  # the PNG text entry; `exiftool image.png` and Pillow's `image.text` show it under this name


def write_png(image: Image.Image, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write `image` as PNG with `metadata` (JSON-serialisable) inside, atomically."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    write_atomically(path, lambda file: image.save(file, format="PNG", pnginfo=text))


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What `write_png` put into the file, read from its header; None for any other file (foreign, broken, no PNG)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # no pixel is read
            with Image.open(path) as image:
                return parse_json_object(image.info[METADATA_KEY])
    except Exception:  # a broken file makes its decoder raise almost anything
        return None
