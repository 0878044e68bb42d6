"""Perfusion on the GPU: fp16 training and drawing stay near float32, and a step never waits for the device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.generation.draw import draw
from neti.models.generation.recipes import ImageRecipe
from neti.training.coach.launch import launch
from neti.training.config.run import RunConfig
from neti.training.studies.benchmark.perfusion import new_perfusion, training_step
from neti.utils.config.parsing import parse_config

ROOT = Path(__file__).parents[2]
STEPS = 6


def train(folder: Path, device: torch.device, precision: str) -> tuple[Concept, list[float]]:
    """A short training on the miniature: the concept, and the loss of every step."""
    settings = {
        "config_path": ROOT / "input_configs" / "train_perfusion_miniature.yaml",
        "log.exp_dir": folder,
        "log.exp_name": precision,
        "log.report_to": "none",
        "data.train_data_dir": ROOT / "input_configs" / "concepts" / "taxi",
        "eval.validation_prompts": "null",
        "optim.max_train_steps": STEPS,
        "optim.mixed_precision": precision,
        "optim.device": device,
    }
    assert launch(parse_config(RunConfig, [f"--{key}={value}" for key, value in settings.items()])) == 0
    lines = (folder / precision / "metrics.jsonl").read_text().splitlines()
    concept = Concept.load(folder / precision / f"concept-steps-{STEPS}.safetensors")
    return concept, [json.loads(line)["loss"] for line in lines]


def test_half_precision_trains_and_draws_nearly_the_same(tmp_path: Path, device: torch.device) -> None:
    """fp16, which a CPU does not train in; there the rehearsal takes bf16."""
    name, dtype = ("fp16", torch.float16) if device.type == "cuda" else ("bf16", torch.bfloat16)
    full, losses = train(tmp_path, device, "no")
    half, its_losses = train(tmp_path, device, name)
    assert its_losses == pytest.approx(losses, rel=0.05)
    own, other = half.method.state_dict(), full.method.state_dict()
    for tensor in ("key", "key_targets", "word"):
        assert (own[tensor] - other[tensor]).abs().max() < 0.05 * other[tensor].abs().max(), tensor

    recipe = ImageRecipe("a photo of a {}", seed=3, steps=8, guidance_scale=4)
    images = []
    for precision in (torch.float32, dtype):
        backbone = Backbone.from_pretrained("miniature", device=device, dtype=precision)
        [drawn] = draw(backbone, [recipe], {"{}": half.method.to(device)})
        images.append(np.asarray(drawn.image, dtype=float))
    assert images[0].std() > 5, "there is something in the picture"
    assert np.abs(images[0] - images[1]).mean() < 8


@pytest.mark.cuda_only
def test_a_step_never_waits_for_the_device(make_backbone: Callable[..., Backbone], tmp_path: Path) -> None:
    """The running key included. PyTorch raises at the first operation that makes the host wait."""
    backbone = make_backbone(torch.bfloat16)
    step = training_step(backbone, new_perfusion(backbone, tmp_path), 2)
    step()  # first calls set things up
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
