"""Plain values to dataclasses: every value is checked against its field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from neti.utils.config.choices import Choice
from neti.utils.config.records import from_plain


class Colour(Choice):
    red = "red"
    blue = "blue"


@dataclass(frozen=True)
class Inner:
    span: tuple[int, int] = (0, 9)


@dataclass(frozen=True)
class Outer:
    name: str
    size: float = 1.0
    count: int | None = None
    flag: bool = False
    colour: Colour = Colour.red
    inner: Inner = Inner()
    parts: tuple[Inner, ...] = ()
    about: dict[str, Any] | None = None
    norm: float | None = None


def test_values_become_their_types() -> None:
    values = {
        "name": "a",
        "size": 2,
        "count": 3,
        "flag": True,
        "colour": "blue",
        "inner": {"span": [1, 2]},
        "parts": [{}, {"span": [3, 4]}],
        "about": {"x": [1]},
        "norm": 1,
    }
    record = from_plain(Outer, values)
    assert record == Outer("a", 2.0, 3, True, Colour.blue, Inner((1, 2)), (Inner(), Inner((3, 4))), {"x": [1]}, 1.0)
    assert type(record.size) is type(record.norm) is float and type(record.colour) is Colour
    assert from_plain(Outer, {"name": "a", "count": None}) == Outer("a")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([], "must be an object {...}, and is a list"),
        (None, "must be an object {...}, and is null"),
        ({}, "name is missing"),
        ({"name": "a", "sizes": 1}, "'sizes' is no key that this version knows; it has name, size, "),
        ({"name": "a", 3: 1}, "3 is no key"),
        ({"name": None}, "name is None; must be text"),
        ({"name": "a", "size": "2"}, "size is '2'; must be a number"),
        ({"name": "a", "size": True}, "size is True; must be a number"),
        ({"name": "a", "count": 2.0}, "count is 2.0; must be a whole number or null"),
        ({"name": "a", "count": True}, "count is True; must be a whole number or null"),
        ({"name": "a", "flag": 1}, "flag is 1; must be true or false"),
        ({"name": "a", "colour": "green"}, "colour is 'green'; must be one of red, blue"),
        ({"name": "a", "colour": []}, "colour is []; must be one of red, blue"),
        ({"name": "a", "inner": {"span": [1]}}, "inner span is [1]; must be a list"),
        ({"name": "a", "inner": {"span": [1, "x"]}}, "inner span is 'x'; must be a whole number"),
        ({"name": "a", "parts": {}}, "parts is {}; must be a list"),
        ({"name": "a", "parts": [1]}, "parts must be an object {...}, and is a number"),
        ({"name": "a", "about": 1}, "about is 1; must be an object {...} or null"),
    ],
)
def test_damage_is_named(values: object, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        from_plain(Outer, values)
    assert str(caught.value).startswith(problem)
