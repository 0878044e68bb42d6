"""SHA-256 of everything that results depend on: byte strings, files, folders, JSON values, pixels, weights.

`sha256` is the one that hashes; the others say what of a thing counts. A short hash names files and folders, where a
person reads it; a long one, as `sha256:<64 digits>`, is recorded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # callers that hash no weights do not wait for torch
    from PIL import Image
    from torch import Tensor

SHORT = 12  # hex digits; two of a million names collide once in half a thousand
BLOCK = 2**22  # bytes of a file that are held at once


def sha256(parts: Iterable[bytes]) -> str:
    """64 hex digits of the byte strings, one after another."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def file_hash(*paths: Path) -> str:
    """`sha256:<64 hex digits>` of the files' bytes, one after another. OSError if one cannot be read."""
    return f"sha256:{sha256(block for path in paths for block in _blocks(path))}"


def json_hash(value: Any) -> str:
    """12 hex digits of a JSON value, whatever the order of its keys."""
    return sha256([json.dumps(value, sort_keys=True).encode()])[:SHORT]


def folder_hash(path: Path) -> str:
    """12 hex digits of a file, or of all files in a folder with their relative names."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    parts = (
        file.relative_to(path).as_posix().encode() + b"\0" + bytes.fromhex(file_hash(file).removeprefix("sha256:"))
        for file in files
    )
    return sha256(parts)[:SHORT]


def pixels_hash(images: Iterable[Image.Image]) -> str:
    """12 hex digits of images' sizes and pixels."""
    return sha256(repr((image.size, image.mode)).encode() + image.tobytes() for image in images)[:SHORT]


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """`sha256:<64 hex digits>` of names and float32 values: the same wherever and in which file they were stored."""
    parts = (
        part
        for name, weight in sorted(state.items())
        for part in (name.encode(), weight.detach().float().cpu().numpy().tobytes())
    )
    return f"sha256:{sha256(parts)}"


def _blocks(path: Path) -> Iterable[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block
