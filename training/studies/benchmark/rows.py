"""A row of the benchmark's table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """what: was measured. value: the result. counted: what the arithmetic alone would give. wanted: the aim, if any.

    note: the seconds behind a ratio, or how the number came about.
    """

    what: str
    value: str
    counted: str = ""
    wanted: str = ""
    note: str = ""


def seconds(value: float) -> str:
    """With three digits: 1.23 s, 45.6 ms."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
