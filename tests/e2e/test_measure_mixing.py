"""`scripts/measure_mixing.py` on a tiny random model: pages, pictures and numbers, and nothing made twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from frames import created
from load_script import load_script, require_font

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.methods import NeTI, NeTIConfig
from neti.training.studies.page import measured_part

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> Any:
    require_font()
    return load_script("measure_mixing")


@pytest.fixture
def argv(tmp_path: Path, tiny_backbone_folder: Path) -> list[str]:
    """One pair of concepts that were never trained, two seeds, two steps; the judge is the miniature's."""
    backbone = Backbone.from_pretrained(str(tiny_backbone_folder), components=())
    for seed, (name, word) in enumerate({"tiger": "cat", "taxi": "car"}.items()):
        method = created(
            NeTI,
            NeTIConfig(),
            backbone.frame.num_places,
            torch.ones(backbone.frame.text_width),
            torch.Generator().manual_seed(seed),
        )
        Concept(method.eval(), "<concept>", word, {"step": 0}).save(tmp_path / "concepts" / f"{name}.safetensors")
    for page in ("style_mixing.md", "several_concepts.md"):
        (tmp_path / "docs").mkdir(exist_ok=True)
        shutil.copy(ROOT / "docs" / page, tmp_path / "docs" / page)
    options = {
        "sd": tiny_backbone_folder,
        "concepts_dir": ROOT / "input_configs" / "concepts",
        "concept_files": tmp_path / "concepts",
        "train_config": tmp_path / "none.yaml",
        "style_pairs": '["tiger + taxi"]',
        "mixing_start": "[100, 900]",
        "style_seeds": "0-1",
        "both_pairs": '["tiger + taxi"]',
        "both_seeds": "0-1",
        "help_seeds": 1,
        "renders": 60,
        "steps": 2,
        "work_dir": tmp_path / "work",
        "docs_dir": tmp_path / "docs",
    }
    return [f"--{key}={value}" for key, value in options.items()]


def test_pages_are_filled_and_nothing_is_made_twice(
    script: Any, argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(argv) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "work" / "mixing.json").read_text())
    mixed = record["style_mixing"]["tiger + taxi"]["mixed"]
    assert len(mixed) == 2 and len(mixed[0]["geometry"]) == 2
    ways = record["several_concepts"]["ways"]
    assert {way: len(found["tiger + taxi"]) for way, found in ways.items()} == {
        "words alone": 2,
        "concepts": 2,
        "with sides": 1,
        "16 hidden units each": 1,
        "bypass x 0.5": 1,
    }
    assert {name: len(found["tiger + taxi"]) for name, found in record["several_concepts"]["checks"].items()} == {
        "both": 2,
        "one": 2,
        "twice": 2,
        "generated alone": 2,
    }
    images = list((tmp_path / "work" / "images").glob("*.png"))
    assert len(images) == 2 * 2 + 2 * 2 + 2 + 2 + 1 + 1 + 1, "own, mixed, and the five ways"
    assert len({path.read_bytes() for path in images}) == len(images), "every way makes other images"
    for page, message in (("style_mixing.md", "Spearman"), ("several_concepts.md", "real renders of both")):
        _, section, _ = measured_part(tmp_path / "docs" / page)
        assert message in section and str(tmp_path) not in section
        assert (tmp_path / "docs" / "images" / page.replace(".md", ".jpg")).is_file()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*") if path.name != "mixing.json"}
    assert script.main(argv) == 0
    assert "measuring" not in capsys.readouterr().out.rpartition("mixing.json")[2]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('--both_pairs=["tiger + wolf"]', "wolf has no file in concept_files"),
        ("--docs_dir=none", "none/style_mixing.md cannot be read"),
        ("--sd=none", "model 'none'"),
        ("--concepts_dir=docs", "concepts.yaml"),
    ],
)
def test_mistakes_are_told_in_one_line(
    script: Any, argv: list[str], change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([*argv, change]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
