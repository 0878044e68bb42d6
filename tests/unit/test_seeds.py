"""Seeds as people write them."""

from __future__ import annotations

import pytest

from neti.utils.errors import UserError
from neti.utils.seeds import MAX_SEED, parse_seeds


@pytest.mark.parametrize(
    ("written", "seeds"),
    [
        (7, [7]),
        ("7", [7]),
        ("0-3", [0, 1, 2, 3]),
        ("5-5", [5]),
        (" 1, 5 , 7 - 9", [1, 5, 7, 8, 9]),
        ([42, "100-102"], [42, 100, 101, 102]),
        ((3, 1, 3), [3, 1, 3]),
        (str(MAX_SEED), [MAX_SEED]),
    ],
)
def test_seeds_in_the_order_written(written: int | str | list[int | str], seeds: list[int]) -> None:
    assert parse_seeds(written) == seeds


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "no seeds given"),
        ([], "no seeds given"),
        ("x", "'x' is neither a seed nor a range"),
        (-1, "'-1' is neither a seed nor a range"),
        ("1.5", "'1.5' is neither a seed nor a range"),
        ("1-2-3", "'1-2-3' is neither a seed nor a range"),
        ("9-3", 'the seed range "9-3" falls; write the smaller seed first: "3-9"'),
        (MAX_SEED + 1, "is too large"),
        ("0-99999999999", "makes more than 100000 seeds"),
    ],
)
def test_what_is_no_seed_is_told(written: int | str | list[int | str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_seeds(written)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
