"""Mistakes a user can make and fix: one line each, exit code 2."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what shells expect


class UserError(ValueError):
    """Something the user can fix. The message is ONE line: what, where, what is allowed, how to fix it.

    Several mistakes found together are given one per line; `exit_on_user_error` prints each as its own `error:` line.
    """


def first_line(error: BaseException) -> str:
    """What an exception says, for a message: its first line, of bounded length, or its type where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turn a script's `main` into one that answers a `UserError` with `error: <line>` on stderr and exit code 2.

    Returns a function that gives the exit code (None counts as 0); Ctrl-C gives 130. Any other exception is a bug in
    this project and keeps its traceback. Use as `sys.exit(main())`.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
            return EXIT_USER_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED

    return wrapped
