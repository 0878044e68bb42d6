"""Templates, `{}` filling, prompt files and file names."""

from __future__ import annotations

from pathlib import Path

import pytest

from neti.models.conditioning.prompts import (
    OBJECT_TEMPLATES,
    PAPER_PROMPTS,
    STYLE_TEMPLATES,
    Prompt,
    Slot,
    read_prompts,
    safe_name,
)
from neti.utils.errors import UserError


def test_the_templates_are_those_of_textual_inversion() -> None:
    assert (len(OBJECT_TEMPLATES), len(STYLE_TEMPLATES), len(PAPER_PROMPTS)) == (27, 19, 15)
    assert len(set(OBJECT_TEMPLATES)) == 27
    assert len(set(STYLE_TEMPLATES)) == 17  # two stand twice, in the original as well
    assert all(text.count("{}") == 1 for text in (*OBJECT_TEMPLATES, *STYLE_TEMPLATES, *PAPER_PROMPTS))


def test_the_placeholder_is_a_word_of_its_own() -> None:
    assert Prompt.parse("<toy> next to a {}", "<toy>").text == "{} next to a {}"
    assert Prompt.parse("a zorgish zorg, zorg's azorg", "zorg").text == "a zorgish {}, {}'s azorg"
    assert Prompt.parse("a photo of S*2 and S*", "S*").text == "a photo of {}2 and {}", "as people write it"
    assert Prompt.parse("a <toy>").text == "a <toy>"


def test_slots_are_found_with_name_and_units() -> None:
    prompt = Prompt.parse("{} next to {mug}, {my-cat_2:16} and {mug}; {0} {weird { } {é}")
    assert prompt.slots == (
        Slot("{}", "{}"),
        Slot("{mug}", "mug"),
        Slot("{my-cat_2:16}", "my-cat_2", 16),
        Slot("{é}", "é"),
    )
    assert prompt.names == ("{}", "mug", "my-cat_2", "é")


@pytest.mark.parametrize("wrong", ["{my mug}", "{mug:}", "{mug:a}", "{:a}", "{1mug}", "{mug: 16}"])
def test_other_words_in_braces_are_told(wrong: str) -> None:
    with pytest.raises(UserError) as caught:
        Prompt.parse(f"a photo of {wrong}")
    assert wrong in str(caught.value) and "{name:16}" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        "A photo of a {} on a beach --n blurry --d 3 --w 128 --h 64",
        "--ar 16:9 a {}",
        "a {} --seed=3",
        "a ({}:1.5) on a beach",
        "a {} (on a beach : 1.2)",
        "a [{}:0.8]",
        "a [cat:{}:0.5]",
        "a ((beautiful)) {}",
        "a (beautiful)1.3 {}",
        "a {}++ on a beach",
        "a (red {})-- on a beach",
        "a [cat|{}]",
        "a {} \\(toy\\)",
        "a {} <lora:detail:0.8>",
        "a {}, embedding:easynegative",
        "a (r2d2:1.5) beside {}",
        "a {} --cfg_scale 7 --Steps 20",
    ],
)
def test_what_other_tools_read_as_settings_is_never_part_of_the_prompt(wrong: str) -> None:
    with pytest.raises(UserError, match="of other tools: ") as caught:
        Prompt.parse(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "right",
    [
        "a {} -- on a beach",
        "a {} at (10:30)",
        "a {} (red, 4:3) [sic]",
        "C++ on a {}",
        "a well-known {} - nice",
        "a {mug:16} :)",
        "a <toy> {}: the film",
        "{} (left) 3 cats",
        "a page of {} (chapter: 3)",
        "a {} (rated: 4.5), a photo (from 2019)",
        "scene --- day, {}",
        "a {} --an old one-- on a table",
        "a screen (2.35:1) with {}",
        "sin((x) of a {}",
    ],
)
def test_ordinary_punctuation_stays(right: str) -> None:
    assert Prompt.parse(right).text == right


def test_a_long_prompt_does_not_fill_the_screen() -> None:
    for text in ("{x y}" + "x" * 1_900, "a {} " + "x" * 12_000, "{mug:" + "9" * 5000 + "}", "{" + "x y" * 5000 + "}"):
        with pytest.raises(UserError) as caught:
            Prompt.parse(text)
        assert len(str(caught.value)) < 700


def test_read_prompts_skips_empty_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfA photo of a {}\r\n\r\n  Caf\xc3\xa9 with {}  \n")
    assert read_prompts(path) == ["A photo of a {}", "Café with {}"]


def test_a_prompts_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("\n \n")
    latin.write_bytes(b"Caf\xe9 {}")
    for path, message in [
        (tmp_path / "none.txt", "does not exist"),
        (empty, "is empty"),
        (latin, "is not UTF-8 text"),
        (tmp_path, "cannot be read"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            read_prompts(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("prompt", ["A photo of a {}", "Café 猫 🎨 of {}", "it's {}, v1.5 (new)", "console {}"])
def test_a_good_name_is_kept(prompt: str) -> None:
    assert safe_name(prompt) == prompt


@pytest.mark.parametrize(
    "prompt",
    [
        "a/b",
        "..",
        "../../etc/passwd",
        ".hidden",
        "",
        "   ",
        "dots...",
        "con",
        "NUL",
        "com1.png",
        "a:b",
        "what?",
        "<toy>",
        "tab\there",
        "two\nlines",
        "\u2028",
        "nul\x00",
        "x" * 300,
        "猫" * 100,
        "lone \ud800 half",
        "Cafe\u0301",
    ],
)
def test_a_bad_name_becomes_a_good_one_on_every_system(prompt: str, tmp_path: Path) -> None:
    name = safe_name(prompt)
    assert name != prompt
    assert 0 < len(name.encode()) <= 120
    assert not set(name) & set('<>:"/\\|?*')
    assert name.isprintable()
    assert name[0] not in ". "
    assert name[-1] not in ". "
    assert name.split(".")[0].upper() not in {"CON", "NUL", "COM1"}
    assert safe_name(name) == name
    assert safe_name(prompt) == name
    (tmp_path / name).mkdir()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_different_prompts_never_share_a_name() -> None:
    prompts = [
        "a/b",
        "a\\b",
        "a_b",
        "a:b",
        "x" * 300,
        "x" * 301,
        ".",
        "..",
        "...",
        "",
        " ",
        "_con",
        "con",
        "a b",
        "a b ",
    ]
    assert len({safe_name(prompt) for prompt in prompts}) == len(prompts)
