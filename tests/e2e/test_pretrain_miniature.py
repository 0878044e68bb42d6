"""`scripts/pretrain_miniature.py`, all stages at their smallest; what it cannot do is refused before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from load_script import load_script, require_font

from neti.models.backbone.backbone import Backbone
from neti.training.miniature.pretraining.unet import SCHEDULER

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
TOWERS = "{text_width: 32, text_layers: 1, image_width: 32, image_layers: 1, steps: 2, batch: 4}"


@pytest.fixture(scope="module")
def script() -> Any:
    require_font()
    return load_script("pretrain_miniature")


def options(folder: Path, *changes: str) -> list[str]:
    settings = {
        "scenes": 100,
        "workers": 1,
        "work_dir": folder / "work",
        "output_dir": folder / "export",
        "vae": "{channels: [8, 8, 8], steps: 2, decoder_steps: 1, batch: 2}",
        "text": TOWERS,
        "judge": TOWERS,
        "unet": "{categories: [cat, dog], channels: [16, 16, 16, 16], heads: [1, 1, 1, 1], steps: 3, batch: 2}",
    }
    return [*(f"--{key}={value}" for key, value in settings.items()), *changes]


@pytest.fixture(scope="module")
def folder(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining, after a first call whose time was up at once."""
    folder = tmp_path_factory.mktemp("pretraining")
    assert script.main(options(folder, "--minutes=0.00001")) == 0
    assert not (folder / "export").exists()
    assert script.main(options(folder)) == 0
    return folder


def test_stock_diffusers_draws_with_what_it_exports(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    scheduler = json.loads((folder / "export" / "sd" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler == SCHEDULER and scheduler["clip_sample"] is False and "timestep_spacing" not in scheduler
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "export" / "sd")  # no dtype: what the files ask for
    assert {part.dtype for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae)} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a photo of a cat", num_inference_steps=1).images[0].size == (64, 64)
    assert Backbone.from_pretrained(str(folder / "export" / "sd")).frame.num_places == 16
    assert all(str(folder) not in path.read_text() for path in (folder / "export").rglob("*.json"))
    assert json.loads((folder / "export" / "training.json").read_text())["unet"]["steps"] == 3


def test_a_finished_one_is_read_and_another_goes_on_from_it(script: Any, folder: Path, tmp_path: Path) -> None:
    stages = {path: path.stat().st_mtime_ns for path in (folder / "work").glob("*.pt")}
    assert {path.stem for path in stages} == {"vae", "clip_text", "clip_judge", "moments", "unet", "vae_decoder"}
    assert script.main(options(folder)) == 0
    assert {path: path.stat().st_mtime_ns for path in stages} == stages
    assert script.main(options(tmp_path, f"--start_from={folder / 'export'}")) == 0
    assert {path.stem for path in (tmp_path / "work").glob("*.pt")} == {"moments", "unet", "vae_decoder"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--device=cuda:77", "device = 'cuda:77'"),
        ("--device=gpu", "device = 'gpu' is no device"),
        ("--font=README.md", "README.md is not Noto Color Emoji"),
        ("--font=none.ttf", "there is no font none.ttf"),
        ("--pixels=128", "latents must come out 16 x 16"),
        ("--unet.channels=[16, 16]", "one for each of the four levels"),
        ("--unet.channels=[16, 16, 16, 24]", "multiple of 16"),
        ("--unet.heads=[3, 1, 1, 1]", "must divide unet.channels"),
        ("--unet.categories=[cats]", "unet.categories = ['cats']"),
        ("--unet.batch=0", "at least 1"),
        ("--vae.channels=[9, 8, 8]", "multiple of 8"),
        ("--text.patch=7", "text.patch = 7 must divide"),
        ("--judge.text_width=40", "multiples of 32"),
        ("--text.alike=[0.9, 0.9]", "together at most 1"),
        ("--start_from=docs", "start_from = docs: not a whole export"),
        ("--scenes=101", "holds data of"),
        ("--scenes=1e30", "scenes"),
        ("--output_dir=README.md/x", "cannot write to output_dir README.md/x: Not a directory"),
        ("--unet.channels=[32, 32, 32, 32]", "unet.pt is damaged, or was saved with other settings"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    script: Any,
    folder: Path,
    change: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    assert script.main(options(folder, change)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
