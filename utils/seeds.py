"""Seeds as people write them: `7`, `"0-31"`, `"1,5,7-9"`, `[42, "100-103"]`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import UserError, shown

MAX_SEED = 2**63 - 1  # what torch.Generator.manual_seed takes
MAX_COUNT = 100_000  # a slip such as 0-99999999 should say so, not fill the memory
_PART = re.compile(r"(\d{1,30})(?:\s*-\s*(\d{1,30}))?", re.ASCII)


def parse_seeds(value: int | str | Iterable[int | str]) -> list[int]:
    """The seeds that `value` stands for, in the order written; ranges include both ends.

    Raises UserError for an empty value, a part that is no seed or range, a falling range, or a seed above 2**63 - 1.
    """
    parts = _parts(value)
    if not parts:
        raise UserError('no seeds given; write for example 42, "0-31" or [1, 5, "7-9"]')
    seeds: list[int] = []
    for part in parts:
        match = _PART.fullmatch(part)
        if match is None:
            raise UserError(
                f'{shown(part)} is neither a seed nor a range of seeds; write for example 42, "0-31" or "1,5,7-9"'
            )
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if last < first:
            raise UserError(f'the seed range "{part}" falls; write the smaller seed first: "{last}-{first}"')
        if last > MAX_SEED:
            raise UserError(f"seed {last} is too large; seeds go from 0 to {MAX_SEED}")
        if len(seeds) + last - first >= MAX_COUNT:
            raise UserError(f'"{part}" makes more than {MAX_COUNT} seeds; ask for fewer')
        seeds.extend(range(first, last + 1))
    return seeds


def _parts(value: int | str | Iterable[int | str]) -> list[str]:
    if isinstance(value, (int, str)):
        return [part.strip() for part in str(value).split(",") if part.strip()]
    return [part for item in value for part in (_parts(item) if isinstance(item, (int, str)) else [str(item)])]
