"""Training, inference and pipelines on base models as they lie on people's disks."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from load_script import load_script
from model_files import make_counterfeit, one_file
from PIL import Image
from safetensors.torch import save_file
from tiny_sd2 import make_tiny_sd2
from tiny_xl import build_tiny_xl, parts_of
from training_runs import arguments, write_images

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.pipelines.attach import attach

pytestmark = pytest.mark.e2e
RECIPES = Path(__file__).parents[2] / "input_configs"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the `main` of a script."""

    def run(script: str, *words: object) -> int:
        module = load_script(script)
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        return module.main()

    return run


def training(root: Path, model: object, **changes: object) -> list[str]:
    return arguments(root, Path(str(model)), **{"optim__max_train_steps": 2, **changes})


def drawing(root: Path, model: object | None = None, **changes: object) -> list[object]:
    keys: dict[str, object] = {
        "input_dir": root / "runs" / "toy",
        "inference_dir": root / "images",
        "prompts": '["A photo of a {}"]',
        "seeds": 1,
        "num_denoising_steps": 2,
        "torch_dtype": "fp32",
        "device": "cpu",
        **changes,
    }
    if model is not None:
        keys["pretrained_model_name_or_path"] = model
    return [word for key, value in keys.items() for word in (f"--{key}", value)]


def test_stable_diffusion_as_it_was_published_in_2022(
    call: Callable[..., int], tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    """Pickles, old names, JSON files of five lines, a safety checker: train, draw, attach."""
    model = make_counterfeit(tmp_path / "sd-v1-4", tiny_backbone_folder)
    write_images(tmp_path / "images")
    assert call("train", *training(tmp_path, model)) == 0
    assert call("inference", *drawing(tmp_path, inference_dir=tmp_path / "drawn")) == 0
    [drawn] = (tmp_path / "drawn").glob("*/1.png")
    assert json.loads(drawn.with_suffix(".json").read_text())["recipe"]["safety_checker"] is True

    pipe: Any = StableDiffusionPipeline.from_pretrained(model)
    assert pipe.safety_checker is not None
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    attach(pipe, {"<toy>": Concept.load(tmp_path / "runs" / "toy" / "concept-steps-2.safetensors")})
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    image = pipe("A photo of a <toy>", num_inference_steps=2, latents=noise).images[0]
    assert image.size == (512, 512)
    difference = np.asarray(image).astype(int) - np.asarray(Image.open(drawn).convert("RGB"))
    assert abs(difference).max() <= 1


def test_a_checkpoint_in_one_file_by_a_relative_path(
    call: Callable[..., int], tiny_backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_backbone_folder, models, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(one_file(Backbone.from_pretrained(str(tiny_backbone_folder))), models / "civitai.safetensors")
    write_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    assert call("train", *training(tmp_path, "models/civitai.safetensors")) == 0
    assert call("inference", *drawing(tmp_path, inference_dir=tmp_path / "file")) == 0
    assert call("inference", *drawing(tmp_path, tiny_backbone_folder, inference_dir=tmp_path / "folder")) == 0
    pictures = [np.asarray(Image.open(next((tmp_path / name).glob("*/1.png")))) for name in ("file", "folder")]
    assert (pictures[0] == pictures[1]).all()


def test_stable_diffusion_2(call: Callable[..., int], tmp_path: Path) -> None:
    """From its own resolution, velocities and padding to a picture of 768 pixels, in float32 and in half precision."""
    model = make_tiny_sd2(tmp_path / "sd-2-1")
    write_images(tmp_path / "images")
    assert call("train", *training(tmp_path, model)) == 0
    pictures = []
    for dtype in ("fp32", "fp16"):
        keys = {"inference_dir": tmp_path / dtype, "torch_dtype": dtype, "num_denoising_steps": 1}
        assert call("inference", *drawing(tmp_path, **keys)) == 0
        pictures.append(np.asarray(Image.open(next((tmp_path / dtype).glob("*/1.png"))), dtype=float))
    assert pictures[0].shape == (768, 768, 3)
    assert abs(pictures[0] - pictures[1]).mean() < 3


def test_stable_diffusion_xl(call: Callable[..., int], tmp_path: Path) -> None:
    """By its recipe, and with Perfusion, whose covariance is of both text encoders."""
    model = tmp_path / "xl"
    StableDiffusionXLPipeline(**parts_of(build_tiny_xl())).save_pretrained(model)
    write_images(tmp_path / "images")
    recipe = ["--config_path", RECIPES / "train_sdxl.yaml"]
    exact = {"optim__learning_rate": 1e-3, "optim__mixed_precision": "no"}
    assert call("train", *recipe, *training(tmp_path, model, **exact)) == 0
    assert call("inference", *drawing(tmp_path, inference_dir=tmp_path / "neti")) == 0

    (tmp_path / "captions.txt").write_text("\n".join(f"a photo of {n} {w}" for n in range(40) for w in ("cat", "car")))
    covariance = tmp_path / "covariance.safetensors"
    measuring = ["--captions", tmp_path / "captions.txt", "--ridge", "1e-2", "--device", "cpu", "--output", covariance]
    assert not call("make_covariance", "--model", model, *measuring)
    perfusion = {"model__method": "perfusion", "model__perfusion__covariance": covariance, "log__exp_name": "perfusion"}
    assert call("train", *training(tmp_path, model, **perfusion)) == 0
    keys = {"input_dir": tmp_path / "runs" / "perfusion", "inference_dir": tmp_path / "perfusion"}
    covariance.rename(keys["input_dir"] / covariance.name)
    assert call("inference", *drawing(tmp_path, **keys)) == 0
    pictures = [Image.open(next((tmp_path / name).glob("*/1.png"))) for name in ("neti", "perfusion")]
    assert {picture.size for picture in pictures} == {(64, 64)}
    assert pictures[0].tobytes() != pictures[1].tobytes()


@pytest.mark.parametrize("channels", [9, 5, 8])
def test_a_model_for_another_task_is_refused_alike_everywhere(
    call: Callable[..., int],
    tiny_backbone_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    channels: int,
) -> None:
    """In one line, before anything is written: in a dry run, in training, in inference."""
    write_images(tmp_path / "images")
    assert call("train", *training(tmp_path, tiny_backbone_folder)) == 0
    model = Path(shutil.copytree(tiny_backbone_folder, tmp_path / "model"))
    config = model / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": channels}))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    other = training(tmp_path, model, log__exp_name="other")
    errors = []
    for words in (("train", *other, "--dry_run", "true"), ("train", *other), ("inference", *drawing(tmp_path, model))):
        capsys.readouterr()
        assert call(*words) == 2
        errors.append(capsys.readouterr().err)
    assert errors[0].startswith(f"error: model '{model}': its U-Net has {channels} input channels")
    assert len(set(errors)) == 1 and errors[0].count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
