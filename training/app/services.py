"""What the page works with, made once; and what it says when something fails."""

from __future__ import annotations

import functools
import html
import inspect
from collections.abc import Callable
from typing import Any

from ...utils.errors import UserError, first_line, saved_traceback
from .config import AppConfig
from .drawing.drawer import Drawer
from .drawing.library import Library
from .learning.runs import Runs
from .places import Places


class Services:
    """The parts of one app, for one outputs folder."""

    def __init__(self, config: AppConfig) -> None:
        """Makes the folders. UserError if the disk refuses, or a recipe is missing."""
        for method, path in config.recipes.items():
            if not path.is_file():
                raise UserError(
                    f"recipes.{method} = {path} does not exist; start in the project's folder, or write --recipes "
                    "'{neti: FILE.yaml}'"
                )
        self.config = config
        self.places = Places(config.outputs)
        self.places.make()
        self.library = Library(self.places)
        self.drawer = Drawer(config, self.places, self.library)
        self.runs = Runs(self.places)


def message_of(error: BaseException) -> str:
    """One line for the page, safe as HTML; of a fault of ours it tells where the traceback is."""
    if isinstance(error, UserError):
        return html.escape(str(error).replace("\n", "; "))
    what = f"{type(error).__name__}: {first_line(error)}"
    return html.escape(f"{what} (a fault of this program; {saved_traceback()})")


def guarded(function: Callable[..., Any], fail: Callable[[str], BaseException]) -> Callable[..., Any]:
    """`function`, raising `fail(one line)` instead of whatever it raises; a generator stays one."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def steps(*values: Any, **more: Any) -> Any:
            try:
                yield from function(*values, **more)
            except Exception as error:
                raise fail(message_of(error)) from None

        return steps

    @functools.wraps(function)
    def call(*values: Any, **more: Any) -> Any:
        try:
            return function(*values, **more)
        except Exception as error:
            raise fail(message_of(error)) from None

    return call
