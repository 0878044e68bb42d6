"""Reading other tools' `.pt` and `.bin` files. They are pickles, and a pickle can run any code when it is read.

Here they go through PyTorch's restricted unpickler, which builds tensors and plain containers only, and the classes a
caller allows by name.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ...utils.errors import UserError, first_line, shorten
from ...utils.files import require_file


def read_pickle(path: str | Path, what: str, allowed: Iterable[tuple[type, str]] = ()) -> Any:
    """What `torch.save` wrote to `path`, on the CPU. Nothing in the file is ever executed.

    what: the file should be, for messages. allowed: pairs of a class and the name it answers to in the pickle.
    Raises UserError for a file that is missing or broken, or that asks for any other class, naming that class.
    """
    require_file(path, what)
    shells: list[Any] = list(allowed)
    with safe_globals(shells):
        try:
            _refuse_bombs(path)
            with open(path, "rb") as file:  # from a path torch would judge by the name's ending
                unsafe = get_unsafe_globals_in_checkpoint(file)
                file.seek(0)
                if not unsafe:
                    return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file makes the unpickler raise
            raise UserError(f"{path}: refused or unreadable as a {what} ({first_line(error)})") from error
    wanted = shorten(", ".join(sorted(unsafe)))
    raise UserError(
        f"{path}: refused, nothing was executed: the pickle asks for {wanted}, which a {what} never needs; do not open "
        "this file elsewhere"
    )


def _refuse_bombs(path: str | Path) -> None:
    """ValueError for an archive that unpacks to more than it is; `torch.save` never compresses."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > os.path.getsize(path):
            raise ValueError(f"an archive that unpacks to {size / 2**20:.0f} MiB")
