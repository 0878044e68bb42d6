"""Keeping diffusers and transformers from writing what nobody needs to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

LIBRARIES = (diffusers_logging, transformers_logging)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """A bar over a second's work is noise in a script's output."""
    switched = [library for library in LIBRARIES if library.is_progress_bar_enabled()]
    for library in switched:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in switched:
            library.enable_progress_bar()


@contextmanager
def without_warnings() -> Iterator[None]:
    """For code that warns of what it does itself: pipelines, of torchvision when they are imported, and of casting."""
    before = [library.get_verbosity() for library in LIBRARIES]
    for library in LIBRARIES:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in zip(LIBRARIES, before, strict=True):
            library.set_verbosity(verbosity)
