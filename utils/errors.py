"""How a script ends: a mistake that a user can fix is one line and exit code 2, a fault of ours one line and 1."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import reprlib
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import NoReturn, TextIO

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what shells expect
EXIT_CLOSED_PIPE = 141  # 128 + SIGPIPE, likewise
SHOWN = 200  # characters of other people's text in one message; what is longer hides the rest of the line

_values = reprlib.Repr()
_values.maxstring = _values.maxother = SHOWN
_values.maxlist = _values.maxtuple = _values.maxdict = 8
_values.maxlevel = 4


class UserError(ValueError):
    """Something the user can fix. The message is ONE line: what, where, what is allowed, how to fix it.

    Several mistakes found together are given one per line; `exit_on_user_error` prints each as its own `error:` line.
    """


class ArgumentParser(argparse.ArgumentParser):
    """argparse for the scripts without a config: a wrong option is a `UserError` too, one line without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{shorten(message)}; {self.prog} --help lists the options")


def shorten(text: str, limit: int = SHOWN) -> str:
    """`text` on one line that any file can hold, with its middle left out where it has more than `limit` characters."""
    text = text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")  # names in other people's pickles
    if len(text) <= limit:
        return text
    end = limit // 4
    return f"{text[: limit - end - 5]} ... {text[-end:]}"


def shown(value: object) -> str:
    """`repr` for messages: of bounded length, however long, deep or many the value's parts are."""
    return shorten(_values.repr(value))


def first_line(error: BaseException) -> str:
    """What an exception says, for a message: its first line, of bounded length, or its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{shorten(lines[0])} is missing" if isinstance(error, KeyError) else shorten(lines[0])


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turn a script's `main` into one that gives an exit code (None counts as 0). Use as `sys.exit(main())`.

    UserError: `error: <line>` on stderr, once for all processes of a distributed call, and 2. Ctrl-C: 130. A reader
    that stopped reading (`| head -1`): 141, in silence. Anything else is a fault of this project: one line that names a
    file with the traceback, and 1.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a Japanese prompt on an ASCII terminal
        try:
            code = main(*args, **kwargs) or 0
            print(end="", flush=True)  # here, and not at exit, where Python could only complain
            return code
        except UserError as error:
            for line in str(error).splitlines() if not _is_another_of_many() else ():
                print(f"error: {line}", file=sys.stderr)
            return EXIT_USER_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            discard(sys.stdout)
            return EXIT_CLOSED_PIPE
        except Exception as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            print(f"error: {what} (a fault of this program; {saved_traceback()})", file=sys.stderr)
            return EXIT_FAULT

    return wrapped


def discard(stream: TextIO) -> None:
    """Let what is still written to `stream` go nowhere: its reader is gone, and Python would complain again at exit."""
    with contextlib.suppress(OSError, ValueError):  # it may be no file of the operating system
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_another_of_many() -> bool:
    """Whether this is a process of a distributed call whose first process makes the same mistake."""
    rank, processes = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return rank.isdecimal() and processes.isdecimal() and 0 < int(rank) < int(processes)


def saved_traceback() -> str:
    """Write the exception being handled to a new file; says where."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="neti-", suffix=".txt", encoding="utf-8", errors="backslashreplace", delete=False
        ) as file:
            file.write(f"{sys.argv}\n{traceback.format_exc()}")
    except OSError as problem:
        return f"its traceback cannot be saved: {problem.strerror}"
    return f"its traceback is in {file.name}"
