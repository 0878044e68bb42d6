"""PNG files that carry the recipe they were made from.

The recipe travels inside (one text entry, JSON in UTF-8), so that it stays with the picture when the picture is mailed,
renamed or sorted elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ..files import write_atomically

METADATA_KEY = "neti"  # the PNG text entry; `exiftool image.png` and Pillow's `image.text` show it under this name


def write_png(image: Image.Image, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write `image` as PNG with `metadata` (JSON-serialisable) inside, atomically."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    write_atomically(path, lambda file: image.save(file, format="PNG", pnginfo=text))


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What `write_png` put into the file, read from its header; None for any other file (foreign, broken, no PNG)."""
    try:
        with Image.open(path) as image:
            metadata = json.loads(image.info[METADATA_KEY])
    except (OSError, KeyError, ValueError, RecursionError, Image.DecompressionBombError):
        return None
    return metadata if isinstance(metadata, dict) else None
