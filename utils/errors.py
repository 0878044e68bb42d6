"""Mistakes a user can make and fix: one line each, exit code 2."""

from __future__ import annotations

import argparse
import functools
import io
import os
import reprlib
import sys
from collections.abc import Callable
from typing import NoReturn

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
    """`text` with its middle left out where it has more than `limit` characters."""
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
    """Turn a script's `main` into one that answers a `UserError` with `error: <line>` on stderr and exit code 2.

    Returns a function that gives the exit code (None counts as 0); Ctrl-C gives 130, a reader that stopped reading
    (`| head -1`) 141. Any other exception is a bug in this project and keeps its traceback. Use as `sys.exit(main())`.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a Japanese prompt on an ASCII terminal
        try:
            code = main(*args, **kwargs) or 0
            sys.stdout.flush()
            return code
        except UserError as error:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
            return EXIT_USER_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
            return EXIT_CLOSED_PIPE

    return wrapped
