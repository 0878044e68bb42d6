"""Small files that people made: whatever is in the place of one is one short line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neti.utils.config.values import name_or_path
from neti.utils.errors import UserError
from neti.utils.files import parse_json_object, read_json_object, read_text, require_file, user_path, write_atomically

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3840\n"


def line(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        read_text(path, "prompts file")
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    text, pointer, pipe = tmp_path / "text", tmp_path / "pointer", tmp_path / "pipe"
    text.write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    pointer.write_text(POINTER)
    os.mkfifo(pipe)
    assert read_text(text, "prompts file") == "café"
    assert line(tmp_path) == f"the prompts file {tmp_path} cannot be read: it is a folder; give the path of a file"
    assert line(tmp_path / "no") == f"the prompts file {tmp_path / 'no'} does not exist; check the path"
    assert line(text / "below") == f"the prompts file {text / 'below'} does not exist; check the path"
    assert "it is no regular file" in line(pipe)  # reading it would wait for ever
    assert "it is no regular file" in line("/dev/zero")
    assert "is a Git LFS pointer, not the file itself; run `git lfs pull`" in line(pointer)
    assert "File name too long" in line(tmp_path / ("x" * 300))
    assert "no file can have this name" in line("a\0b")
    assert "no file can have this name" in line("\ud800")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_place_without_permission_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a")
    (tmp_path / "text").chmod(0)
    assert line(tmp_path / "text").endswith("cannot be read: Permission denied")


def test_text_that_is_too_long_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ab\xff")
    (tmp_path / "long").write_bytes(b"a" * (2**20 + 1))
    assert line(tmp_path / "binary").endswith("is not UTF-8 text (byte 2); save it as UTF-8")
    assert line(tmp_path / "long").endswith("has more than 1 MiB; is it the right file?")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no valid JSON (Expecting value: line 1 column 1 (char 0))"),
        ("[1]", "JSON must be an object {...}, and this is a list"),
        ("null", "JSON must be an object {...}, and this is null"),
        ('"x"', "JSON must be an object {...}, and this is text"),
        ("1", "JSON must be an object {...}, and this is a number"),
        ("true", "JSON must be an object {...}, and this is true or false"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"a": NaN}', "nan is no number"),
        ('{"a": [-Infinity]}', "-inf is no number"),
        ('{"a": 1e999}', "inf is no number"),
        ('{"a": ' + "9" * 400 + "}", "a whole number of more than 64 bits"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"a": "\\ud800"}', "is no valid Unicode"),
        ('{"\\udfff": 1}', "is no valid Unicode"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "JSON of more than 32 levels"),
        ('{"a": ' + "[" * 100_000, "JSON of more than 32 levels"),
        ('{"a": ' * 5000, "JSON of more than 32 levels"),
    ],
)
def test_json_of_another_shape(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_json_object(text)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_json_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model_index.json"
    path.write_text('{"a": {"b": [1, 2.5, null, true, "ü", "\\ud83d\\ude95"]}}', encoding="utf-8")
    assert read_json_object(path, "index") == {"a": {"b": [1, 2.5, None, True, "ü", "🚕"]}}
    path.write_text("[]")
    with pytest.raises(UserError) as caught:
        read_json_object(path, "index")
    assert str(caught.value) == (
        f"the index {path} is damaged: JSON must be an object {{...}}, and this is a list; take another copy"
    )


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "a"])
def test_a_file_may_have_the_longest_name_there_is(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, lambda file: file.write(b"whole"))
    assert (tmp_path / name).read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 1


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a"
    assert user_path("a/~b") == Path("a/~b")
    with pytest.raises(UserError, match=r"not there; a file of this name is \./~nobody-here/a"):
        user_path("~nobody-here/a")
    for long in ("x" * 256, "a/" + "ä" * 128 + "/b", "a/" * 2500, "\ud800" * 100):
        with pytest.raises(UserError, match="longer than a file's name can be"):
            user_path(long)
        with pytest.raises(UserError, match="longer than a file's name can be"):
            name_or_path(long)
    assert require_file(__file__, "test").name == "test_files.py"
