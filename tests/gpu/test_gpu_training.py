"""Training on the GPU: what half precision, compilation, a resume and a second process on the card may not change."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate.accelerator
import pytest
import torch
from diffusers.models import UNet2DConditionModel
from frames import created
from safetensors.torch import load_file
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.conditioning.tokens import tokenize
from neti.models.methods import NeTI, NeTIConfig
from neti.training.coach.launch import launch
from neti.training.coach.objective import Batch, Objective
from neti.training.coach.optimizer import Diverged
from neti.training.coach.state import TrainingState
from neti.training.config.run import RunConfig
from neti.training.studies.benchmark.training import Trainers
from neti.utils.config.parsing import parse_config

ROOT = Path(__file__).parents[2]


def arguments(folder: Path, device: torch.device, **changes: object) -> list[str]:
    """A training of six steps on the miniature; `__` for the dot."""
    settings: dict[str, object] = {
        "config_path": ROOT / "input_configs" / "train_miniature.yaml",
        "log__exp_dir": folder,
        "log__exp_name": "run",
        "log__save_steps": 2,
        "log__report_to": "none",
        "data__train_data_dir": ROOT / "input_configs" / "concepts" / "taxi",
        "eval__validation_prompts": "null",
        "optim__max_train_steps": 6,
        "optim__train_batch_size": 2,
        "optim__lr_scheduler": "linear",
        "optim__device": device,
        **changes,
    }
    return [f"--{key.replace('__', '.')}={value}" for key, value in settings.items()]


def run(folder: Path, device: torch.device, **changes: object) -> dict[str, Tensor]:
    """The concept after the last step."""
    config = parse_config(RunConfig, arguments(folder, device, **changes))
    assert launch(config) == 0
    return load_file(folder / "run" / "concept-steps-6.safetensors")


def interrupted(folder: Path, device: torch.device, **changes: object) -> dict[str, Tensor]:
    """The same as `run`, resumed from the state of step 2."""
    run(folder, device, **changes)
    for step in (4, 6):
        (folder / "run" / f"concept-steps-{step}.safetensors").unlink()
        (folder / "run" / "checkpoints" / f"step-{step}.pt").unlink()
    return run(folder, device, resume="latest", **changes)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max((one[name].float() - other[name].float()).abs().max().item() for name in one)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_run_ends_as_one_that_was_left_alone(tmp_path: Path, device: torch.device, precision: str) -> None:
    """Bit for bit if the GPU's kernels add in a fixed order; else within rounding, which is printed."""
    whole = run(tmp_path / "whole", device, optim__mixed_precision=precision)
    again = run(tmp_path / "again", device, optim__mixed_precision=precision)
    resumed = interrupted(tmp_path / "resumed", device, optim__mixed_precision=precision)
    itself, apart = largest_difference(whole, again), largest_difference(whole, resumed)
    print(f"{precision}: the same run twice {itself:.1e} apart, resumed {apart:.1e}")
    assert apart <= max(10 * itself, 1e-6)


@pytest.mark.cuda_only
def test_an_overflow_in_fp16_skips_the_step_and_resumes_as_it_was(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(*_: object, **__: object) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cuda", init_scale=2.0**40, backoff_factor=2.0**-14)

    monkeypatch.setattr(accelerate.accelerator, "get_grad_scaler", overflowing)
    whole = run(tmp_path / "whole", device, optim__mixed_precision="fp16")
    states = tmp_path / "whole" / "run" / "checkpoints"
    last = TrainingState.load(states / "step-6.pt")
    assert last.scaler is not None and last.scaler["scale"] < 2.0**40, "the scale went down"
    skipped = 6 - int(last.schedule["last_epoch"])
    assert 1 <= skipped < 6, "a skipped step does not move the schedule"
    resumed = interrupted(tmp_path / "resumed", device, optim__mixed_precision="fp16")
    assert TrainingState.load(tmp_path / "resumed" / "run" / "checkpoints" / "step-6.pt").scaler == last.scaler
    assert largest_difference(whole, resumed) < 1e-3


@pytest.mark.cuda_only
def test_a_step_never_waits_for_the_device(make_backbone: Callable[..., Backbone], tmp_path: Path) -> None:
    """PyTorch raises at the first operation that makes the host wait."""
    trainers = Trainers(make_backbone(torch.bfloat16), tmp_path)
    trainer = trainers.make(2)
    trainers.steps(trainer, 2)()  # first calls set things up
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainers.steps(trainer, 3)()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_every_trainer_encodes_its_photos_on_the_device(
    make_backbone: Callable[..., Backbone], device: torch.device, tmp_path: Path
) -> None:
    trainers = Trainers(make_backbone(torch.bfloat16), tmp_path)
    places: list[str] = []
    trainers.backbone.vae.encoder.register_forward_hook(lambda _, __, out: places.append(out.device.type))
    for _ in range(2):
        trainers.make(1)
    assert len(places) == 2 * 2 * 3 and set(places) == {device.type}, "three photos, mirrored and not"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_it_learns_the_same(
    make_tiny_backbone: Callable[..., Backbone], device: torch.device, checkpointing: bool
) -> None:
    """On a U-Net of one level of attention, since compiling takes time per layer."""
    unet = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=32,
        sample_size=8,
    )
    backbone = replace(make_tiny_backbone(), unet=unet).to(device)
    method = created(
        NeTI, NeTIConfig(), backbone.frame.num_places, backbone.word_embedding("toy").cpu(), torch.Generator()
    ).to(device)
    tokens = tokenize(backbone.tokenizer, ["a photo of a {}"] * 2, {"{}": 1})
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    batch = Batch(latents, latents.flip(0), torch.tensor([100, 900], device=device), tokens, [torch.Generator()] * 2)

    def learned(backend: str | None) -> tuple[float, list[Tensor]]:
        method.eval().zero_grad()
        objective = Objective(method, backbone, gradient_checkpointing=checkpointing, compile_backend=backend)
        loss = objective(batch)
        loss.backward()
        return loss.item(), [parameter.grad.clone() for parameter in method.parameters() if parameter.grad is not None]

    loss, gradients = learned(None)
    compiled_loss, compiled = learned("inductor" if device.type == "cuda" else "aot_eager")
    assert compiled_loss == pytest.approx(loss, rel=1e-4)
    for mine, theirs in zip(compiled, gradients, strict=True):
        assert (mine - theirs).norm() <= 1e-2 * theirs.norm() + 1e-8


def test_numbers_that_are_not_finite_end_the_training(make_backbone: Callable[..., Backbone], tmp_path: Path) -> None:
    trainers = Trainers(make_backbone(torch.bfloat16), tmp_path)
    trainer = trainers.make(1)
    trainers.steps(trainer, 1)()
    assert len(trainer.losses.read()) == 1
    with torch.no_grad():
        next(trainer.setup.method.parameters()).fill_(float("nan"))
    trainers.steps(trainer, 1)()
    with pytest.raises(Diverged, match="step 2"):
        trainer.losses.read()


def test_two_trainings_share_a_card(tmp_path: Path, device: torch.device) -> None:
    def start(name: str) -> Any:
        options = arguments(tmp_path, device, log__exp_name=name, optim__mixed_precision="bf16")
        return subprocess.Popen([sys.executable, str(ROOT / "scripts" / "train.py"), *options])

    assert [process.wait() for process in (start("first"), start("second"))] == [0, 0]
    first, second = (load_file(tmp_path / name / "concept-steps-6.safetensors") for name in ("first", "second"))
    assert largest_difference(first, second) < 1e-2
