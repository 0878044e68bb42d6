"""The overview of an inference folder: what it shows, and what it never touches."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from neti.models.generation.gallery import Gallery
from neti.models.generation.recipes import ImageRecipe
from neti.utils.images.png import read_metadata, write_png

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_overview.py"
Overview = Callable[..., int]


@pytest.fixture
def overview() -> Overview:
    spec = importlib.util.spec_from_file_location("overview_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return lambda *words: script.main([str(word) for word in words])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two prompts, seeds 3 and 7, all units and 16; of one prompt seed 7 has no truncated image."""
    gallery = Gallery(tmp_path / "inference")
    for number, prompt in enumerate(("a {}", "{} on a beach")):
        for seed in (7, 3):
            for truncation in (None, 16):
                recipe = ImageRecipe(prompt, seed=seed, truncation=truncation)
                if (number, seed, truncation) != (1, 7, 16):
                    gallery.add(Image.new("RGB", (64, 64), (seed * 30, number * 99, truncation or 0)), recipe, {})
    gallery.write_grids([ImageRecipe("a {}", seed=seed) for seed in (3, 7)])
    return gallery.root


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(2**20) or []}


def test_one_seed_is_shown_with_all_prompts_and_truncations(
    overview: Overview, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert overview(folder) == 0
    assert capsys.readouterr().out == f"the labelled grid: {folder / 'overview.png'}\n"
    assert {(90, 0, 0), (90, 99, 0), (90, 0, 16), (90, 99, 16)} <= colours(folder / "overview.png")
    assert read_metadata(folder / "overview.png") == {"seed": 3}
    assert overview(folder, "--seed", "7") == 0, "an overview of this script is replaced"
    assert capsys.readouterr().out.startswith("note: 1 of the images are not there; their places are grey")
    shown = colours(folder / "overview.png")
    assert {(210, 0, 0), (210, 99, 0), (210, 0, 16), (238, 238, 238)} <= shown and (90, 0, 0) not in shown
    (folder.parent / "photos").mkdir()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(folder.parent / "photos" / "a.png")
    assert overview(folder, "--photos", folder.parent / "photos") == 0
    assert {(1, 2, 3), (90, 0, 0)} <= colours(folder / "overview.png")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_an_image_that_is_left_out_is_named(
    overview: Overview, folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a {}" / "9.png").write_bytes(content)
    assert overview(folder) == 0
    assert f"note: {folder / 'a {}' / '9.png'} is left out: it is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("link", [False, True])
def test_a_foreign_overview_is_never_replaced(
    overview: Overview, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], link: bool
) -> None:
    mine = tmp_path / "mine.png" if link else folder / "overview.png"
    for picture in (b"not even an image", None, {"recipe": asdict(ImageRecipe("a {}"))}, {"images": []}):
        if isinstance(picture, bytes):
            mine.write_bytes(picture)
        elif picture is None:
            Image.new("RGB", (4, 4)).save(mine)
        else:
            write_png(Image.new("RGB", (4, 4)), mine, picture)
        if link and not (folder / "overview.png").is_symlink():
            (folder / "overview.png").symlink_to(mine)
        before = mine.read_bytes()
        assert overview(folder) == 2
        assert "is not an overview of this script and is left as it is" in capsys.readouterr().err
        assert mine.read_bytes() == before
    mine.unlink()
    assert overview(folder) == (2 if link else 0), "a link to nowhere is somebody's as well"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "999"], "seed 999 has no image in"),
        (["--seed", "9" * 5000], "argument --seed: invalid int value: '999"),
        (["--seed", "9" * 400], "seed 999"),
        (["--photos", "nowhere"], "nowhere"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    overview: Overview, folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert overview(folder, *words) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert message in line and len(line) < 500 and captured.out == ""
    assert not (folder / "overview.png").exists()


@pytest.mark.parametrize("place", ["", "gone", "file", "x" * 300])
def test_a_folder_without_images_is_one_line(
    overview: Overview, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").touch()
    assert overview(tmp_path / place) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "0"},
        {"seed": None},
        {"seed": True},
        {"prompt": 3},
        {"prompt": None},
        {"truncation": 1.5},
        {"truncation": []},
        {"voices": 3},
    ],
)
def test_a_recipe_of_another_shape_is_named(
    overview: Overview, folder: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    path = folder / "a {}" / "3.png"
    record = {"recipe": {**asdict(ImageRecipe("a {}", seed=3)), **change}}
    write_png(Image.new("RGB", (64, 64)), path, record)
    assert overview(folder) == 2
    assert f"{path}: its recipe is damaged or was edited" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", [[], "x", 3])
def test_a_recipe_that_is_no_object_is_named(
    overview: Overview, folder: Path, capsys: pytest.CaptureFixture[str], recipe: object
) -> None:
    write_png(Image.new("RGB", (64, 64)), folder / "a {}" / "3.png", {"recipe": recipe})
    assert overview(folder) == 2
    assert "its recipe is damaged or was edited" in capsys.readouterr().err
