"""Reading other tools' `.pt` and `.bin` files. They are pickles, and a pickle can run any code when it is read.

Here they go through PyTorch's restricted unpickler, which builds tensors and plain containers only, and the classes a
caller allows by name.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ...utils.errors import UserError


def read_pickle(path: str | Path, content: str, allowed: Iterable[tuple[type, str]] = ()) -> Any:
    """What `torch.save` wrote to `path`, on the CPU. Nothing in the file is ever executed.

    content: what the file should be, for messages. allowed: pairs of a class and the name it answers to in the pickle.
    Raises UserError for a file that is missing or broken, or that asks for any other class, naming that class.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file ({content} is needed)")
    shells: list[Any] = list(allowed)
    with safe_globals(shells):
        try:
            unsafe = get_unsafe_globals_in_checkpoint(str(path))
            if not unsafe:
                return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path}: refused or unreadable as {content} ({reason})") from error
    raise UserError(
        f"{path}: refused, nothing was executed: the pickle asks for {', '.join(sorted(unsafe))}, which {content} "
        "never needs; do not open this file elsewhere"
    )
