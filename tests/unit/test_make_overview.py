"""`scripts/make_overview.py`: one seed of an inference folder in one picture, which replaces nothing of others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from tiny_judge import generate, photos, picture, recipe

from neti.utils.images.png import read_metadata, write_png

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_overview.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_overview", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    recipes = [recipe(prompt=p, truncation=t, seed=s) for p in ("{} a", "{} b") for t in (None, 8) for s in (3, 5)]
    return generate(tmp_path / "images", recipes)


def test_it_shows_one_seed_and_replaces_its_own(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    photos(tmp_path / "photos", range(2))
    assert script.main([str(folder), "--photos", str(tmp_path / "photos")]) == 0
    assert read_metadata(folder / "overview.png") == {"seed": 3}
    assert script.main([str(folder), "--seed", "5"]) == 0
    assert read_metadata(folder / "overview.png") == {"seed": 5}
    with Image.open(folder / "overview.png") as shown:
        assert shown.width > 2 * script.TILE and shown.height > 2 * script.TILE


def test_a_seed_without_images_is_refused(script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([str(folder), "--seed", "999"]) == 2
    assert "has images of the seeds 3, 5" in capsys.readouterr().err
    assert not (folder / "overview.png").exists()


def test_the_picture_of_another_stays(script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(0).save(folder / "overview.png")
    before = (folder / "overview.png").read_bytes()
    assert script.main([str(folder)]) == 2
    assert "overview.png was not written by this script" in capsys.readouterr().err
    assert (folder / "overview.png").read_bytes() == before


def test_a_recipe_that_makes_no_sense_is_one_line(
    script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(picture(0), folder / "{} a" / "9.png", {"recipe": {"prompt": 3}})
    assert script.main([str(folder)]) == 2
    assert capsys.readouterr().err.count("error: ") == 1
