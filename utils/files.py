"""Files: what people made is read with one line about whatever is wrong, what is written is whole or not there.

Every reader of a config, a prompt list, a recipe or a header goes through here, so that a folder in the place of a
file, a place without permission, a pipe that never ends or JSON of any shape is one `UserError` everywhere. A file is
written to a temporary name beside its place, flushed to the disk, and moved there in one step: whoever finds it under
its name, a resumed run for one, may trust that it is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError, first_line, shorten, shown

MAX_TEXT = 2**20  # bytes: a thousand pages; the largest config of this project has 6 KB
MAX_JSON = 2**24  # bytes: the vocabulary of a tokenizer, the largest JSON beside a model, has 1 MB
MAX_DEPTH = 32  # of JSON
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on every usual file system
MAX_NAME = 200  # bytes; a file's temporary name is longer than its own, and file systems take 255
MAX_INTEGER = 2**63 - 1
NO_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff]")  # what no prompt, name or path may hold
_SURROGATES = re.compile("[\ud800-\udfff]")
LFS_POINTER = b"version https://git-lfs.github.com/"


def user_path(text: str) -> Path:
    """The path a person wrote, `~` and `~name` being home folders, as no shell does inside a YAML file or after `=`.

    Raises UserError where there is no such home: a folder called `~` would be made otherwise; and for a name longer
    than a file's can be, which every look-up would trip over.
    """
    path = os.path.expanduser(text)
    encoded = path.encode("utf-8", "surrogatepass")
    if len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        raise UserError(f"{shown(text)} is longer than a file's name can be")
    if path.startswith("~"):
        raise UserError(f"{shown(text)} names a home folder that is not there; a file of this name is ./{text:.80}")
    return Path(path)


def path_option(text: str) -> Path:
    """`user_path` as argparse's `type`, whose message argparse then passes on."""
    try:
        return user_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def require_file(path: str | Path, what: str) -> Path:
    """`path`, if a file that can be read is there; `what` it should be, for the message: "concept file".

    Raises UserError for nothing there, a folder, a pipe or device, no permission, a name no file can have, and for the
    pointer that Git LFS leaves where the file itself was not fetched.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise UserError(f"the {what} {shorten(str(path))} cannot be read: it is {kind}; give the path of a file")
        with open(path, "rb") as file:
            start = file.read(len(LFS_POINTER))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"the {what} {shorten(str(path))} does not exist; check the path") from None
    except OSError as error:
        raise UserError(f"the {what} {shorten(str(path))} cannot be read: {error.strerror}") from None
    except UserError:
        raise
    except ValueError:  # a NUL or a lone surrogate
        raise UserError(f"the {what} {str(path)!a:.200} does not exist: no file can have this name") from None
    if start == LFS_POINTER:
        raise UserError(f"the {what} {path} is a Git LFS pointer, not the file itself; run `git lfs pull` there")
    return path


def require_writable(folder: Path, key: str) -> None:
    """Raise UserError now, not after the first minutes of work, if `key`'s folder could not be written to.

    Nothing is made yet, not even the folder: the nearest one that is there must take a file.
    """
    whole = folder.absolute()
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(whole / "0.png")  # a name that is too long, a file among the folders
        with tempfile.TemporaryFile(dir=next(place for place in (whole, *whole.parents) if os.path.lexists(place))):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {key} {folder}: {error.strerror}; choose another") from None


def list_folder(path: str | Path, what: str) -> list[Path]:
    """What lies in a folder, sorted; `what` it should be. UserError if it is missing, no folder or cannot be read."""
    try:
        return sorted(Path(path).iterdir())
    except FileNotFoundError:
        raise UserError(f"the {what} {shorten(str(path))} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no folder can have this name"
        raise UserError(f"the {what} {shorten(str(path))} is no folder that can be read: {reason}") from None


def read_text(path: str | Path, what: str, limit: int = MAX_TEXT) -> str:
    """The UTF-8 text of a file, without the byte order mark of Windows editors. UserError as `require_file`, and for
    other bytes or more than `limit` of them."""
    path = require_file(path, what)
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read: {error.strerror}") from None
    if len(content) > limit:
        raise UserError(f"the {what} {path} has more than {limit / 2**20:g} MiB; is it the right file?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the {what} {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if found := NO_TEXT.search(text):
        raise UserError(
            f"the {what} {path} is no text file: character {found.start()} is {found[0]!a}; save it as UTF-8"
        )
    return text


def read_json_object(path: str | Path, what: str) -> dict[str, Any]:
    """The JSON object in a file, checked as by `parse_json_object`. UserError as `read_text`, and for anything else."""
    text = read_text(path, what, MAX_JSON)
    try:
        return parse_json_object(text)
    except ValueError as error:
        raise UserError(f"the {what} {path} is damaged: {error}; take another copy") from None


def parse_json_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`; ValueError (one line) for everything that is not plainly one.

    Besides what the standard forbids, these are refused: NaN and infinities, integers beyond 64 bits, a key given twice
    (readers differ on which counts), lone surrogates (no file or terminal can hold them), and more than 32 levels.
    """
    if len(text) > MAX_JSON:
        raise ValueError(f"more than {MAX_JSON // 2**20} MiB of JSON")
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"JSON of more than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ValueError(f"no valid JSON ({first_line(error)})") from None
    if not isinstance(value, dict):
        raise ValueError(f"JSON must be an object {{...}}, and this is {json_type(value)}")
    _check(value, MAX_DEPTH)
    return value


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a temporary file beside `path`, then move it to `path`; on failure an old file is untouched.

    Raises UserError (one line) where the folder cannot be written to or the disk is full.
    """
    name = path.name if len(os.fsencode(path.name)) < MAX_NAME else hashlib.sha256(os.fsencode(path.name)).hexdigest()
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
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


def write_json(value: object, path: Path) -> None:
    """Write `value` as readable UTF-8 JSON, atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def json_type(value: object) -> str:
    """What JSON calls the type of `value`."""
    names = {type(None): "null", bool: "true or false", str: "text", dict: "an object", list: "a list"}
    return names.get(type(value), "a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"{shown(max(counts, key=counts.__getitem__))} is given twice")
    return found


def _check(value: Any, levels: int) -> None:
    """ValueError for what Python reads, but JSON does not know or nothing else can hold."""
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    if parts and not levels:
        raise ValueError(f"JSON of more than {MAX_DEPTH} levels")
    for part in parts:
        _check(part, levels - 1)
    if isinstance(value, str) and _SURROGATES.search(value):
        raise ValueError(f"{shown(value)} is no valid Unicode")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ValueError("a whole number of more than 64 bits")
