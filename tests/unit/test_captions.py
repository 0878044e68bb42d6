"""Captions as people have them: files beside the photos, a table, with the concept's word or without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neti.training.config.run import DataConfig
from neti.training.data.captions import read_captions
from neti.utils.errors import UserError

PHOTOS = ("a.png", "b.jpg", "c.webp")


def read(folder: Path, **settings: Any) -> list[str | None]:
    """The captions of a.png, b.jpg and c.webp, which need not be there."""
    return read_captions([folder / name for name in PHOTOS], DataConfig(folder, "<toy>", **settings)).texts


def write_table(folder: Path, *rows: Any) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")


@pytest.mark.parametrize("suffix", ["txt", "caption"])
def test_captions_lie_beside_the_photos(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"b.{suffix}").write_text("\ufeffa {} on\n my desk\n", encoding="utf-8")
    (tmp_path / "d.txt").write_text("belongs to no photo")
    captions = read_captions([tmp_path / name for name in PHOTOS], DataConfig(tmp_path, "<toy>"))
    assert captions.texts == [None, "a {} on my desk", None]
    assert captions.files == {tmp_path / f"b.{suffix}"}
    assert captions.notes == []


def test_captions_come_from_a_table(tmp_path: Path) -> None:
    rows = {"c.webp": "a {}", "a.png": "my <toy>", "sub/b.jpg": "a {}", "d.png": "no {}"}
    write_table(tmp_path, *({"file_name": name, "text": text, "seed": 1} for name, text in rows.items()))
    captions = read_captions([tmp_path / name for name in PHOTOS], DataConfig(tmp_path, "<toy>"))
    assert captions.texts == ["my {}", None, "a {}"]
    assert captions.files == {tmp_path / "metadata.jsonl"}
    assert captions.notes == ["metadata.jsonl: 2 captions belong to no photo of the folder, such as 'sub/b.jpg'"]


def test_the_concept_is_named_by_its_placeholder_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a <toy> beside a {}")
    (tmp_path / "b.txt").write_text("<toy>")
    assert read(tmp_path) == ["a {} beside a {}", "{}", None]


def test_a_prefix_names_the_concept_where_the_caption_does_not(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("red, on a desk")
    (tmp_path / "b.txt").write_text("a {} on a desk")
    (tmp_path / "c.txt").write_text(" \n")
    assert read(tmp_path, caption_prefix="a photo of {}, ") == [
        "a photo of {}, red, on a desk",
        "a {} on a desk",
        "a photo of {}",
    ]
    assert read(tmp_path, caption_prefix="<toy>: ")[0] == "{}: red, on a desk"


def test_captions_that_agree_may_stand_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a {}")
    (tmp_path / "a.caption").write_text("a  {}\n")
    write_table(tmp_path, {"file_name": "a.png", "text": "a {}"}, {"file_name": "a.png", "text": "a {}"})
    assert read(tmp_path) == ["a {}", None, None]
    (tmp_path / "a.caption").write_text("my {}")
    with pytest.raises(UserError, match=r"a\.png has different captions in a\.txt and a\.caption and metadata\.jsonl"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"my toy", "a.txt ('my toy') has no {}; write {} where the concept belongs, or set data.caption_prefix"),
        (b"toy " * 4000, "..."),
        (b"a <toy2>", "has no {}"),
        (b"{} beside a {mug}", "a.txt has {mug}; only {} is known there"),
        (b"{} beside a {red mug}", "a.txt: the prompt '{} beside a {red mug}' has {red mug}"),
        (b"caf\xe9 {}", "is not UTF-8 text"),
        (b"", "a.txt ('') has no {}"),
    ],
)
def test_a_caption_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[" * 100_000,
        "[]",
        "null",
        '{"file_name": "a.png"}',
        '{"file_name": "a.png", "text": null}',
        '{"file_name": ["a.png"], "text": "a {}"}',
        '{"file_name": "a.png", "text": "\\ud800 {}"}',
        '{"file_name": "a.png", "text": "a {}"}, {"file_name": "b.jpg", "text": "a {}"}',
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a {}"}\n' + line)
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 2 is not of the form") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    write_table(tmp_path, {"file_name": "a.png", "text": "a {}"}, {"file_name": "a.png", "text": "my {}"})
    with pytest.raises(UserError, match=r"line 2: a\.png has another caption above"):
        read(tmp_path)
