"""Rows about training: the real trainer on pictures of noise, beside the frozen U-Net, the floor of all trainers."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ....models.backbone.backbone import Backbone
from ....models.generation.run import DTYPES
from ....models.methods import NeTI, NeTIConfig, Start
from ....utils.devices import pick_device
from ...coach.launch import make_accelerator
from ...coach.plan import DTYPES as COACH_DTYPES
from ...coach.plan import Setup, make_plan
from ...coach.run_folder import RunFolder
from ...coach.trainer import Trainer
from ...config.options import Tracker
from ...config.run import DataConfig, EvalConfig, LogConfig, OptimConfig, RunConfig
from ...data.dataset import ConceptDataset
from ..random_weights import sd14
from ..timing import Ratio, Row, Timing, in_turn, seconds
from .config import BenchmarkConfig, Subject

PICTURES = 3
CONCEPT_STEPS = 1000
PRECISIONS = {dtype: precision for precision, dtype in COACH_DTYPES.items()}


def make_backbone(config: BenchmarkConfig, subject: Subject) -> Backbone:
    """The model in the configured precision on the configured device, made for images of `resolution` pixels."""
    device, dtype = pick_device(config.device), DTYPES[config.dtype.value]
    if subject is Subject.miniature:
        backbone = Backbone.from_pretrained("miniature", dtype=dtype, device=device)
    else:
        backbone = sd14(device, dtype)
    if config.resolution is not None:
        backbone.unet.register_to_config(sample_size=config.resolution // backbone.vae_scale_factor)
    return backbone


def new_method(backbone: Backbone, seed: int = 0) -> NeTI:
    """NeTI with its default settings, as a training begins with it."""
    width = backbone.frame.text_width
    start = Start(torch.ones(width) / width**0.5, torch.Generator().manual_seed(seed))
    return NeTI.create(NeTIConfig(), backbone.frame, start).to(backbone.unet.device)


class Trainers:
    """Trainers that share one backbone and one accelerator. `folder` is for pictures and, unused, runs."""

    def __init__(self, backbone: Backbone, folder: Path) -> None:
        self.backbone = backbone
        self.folder = folder
        self._numbers = itertools.count()
        random = np.random.default_rng(0)
        (folder / "images").mkdir(parents=True)
        for number in range(PICTURES):
            pixels = random.integers(0, 256, (backbone.image_size, backbone.image_size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        self.accelerator = make_accelerator(self._config(OptimConfig()))

    def make(self, batch: int, accumulation: int = 1, backbone: Backbone | None = None, **optim: Any) -> Trainer:
        """A trainer before its first step; `batch` samples per micro-batch, `optim`: other optimisation settings."""
        config = self._config(OptimConfig(train_batch_size=batch, gradient_accumulation_steps=accumulation, **optim))
        backbone = backbone or self.backbone
        backbone.vae.to(backbone.unet.device)  # a trainer leaves it on the CPU, where the next would wait for it
        method = new_method(backbone)
        assert method.config.target_norm is not None
        setup = Setup(ConceptDataset(config.data, seed=0), backbone, method, method.config.target_norm, first_step=0)
        run = RunFolder(self.folder / f"run-{next(self._numbers)}", self.folder / "logs")
        return Trainer(config, setup, make_plan(config, setup, 1), self.accelerator, run, {})

    def steps(self, trainer: Trainer, count: int) -> Callable[[], None]:
        """`count` optimizer steps of this trainer, as a piece of work."""

        def work() -> None:
            self.accelerator.gradient_accumulation_steps = trainer.config.optim.gradient_accumulation_steps
            self.accelerator.step = 0  # it counts micro-batches, and other trainers' have another length
            for _ in range(count):
                trainer.take_step()

        return work

    def _config(self, optim: OptimConfig) -> RunConfig:
        unet: Any = self.backbone.unet
        return RunConfig(
            log=LogConfig(exp_name="benchmark", exp_dir=self.folder, report_to=Tracker.none),
            data=DataConfig(
                train_data_dir=self.folder / "images",
                placeholder_token="<concept>",
                resolution=self.backbone.image_size,
                dataloader_num_workers=0,
            ),
            eval=EvalConfig(validation_prompts=None),
            optim=replace(optim, mixed_precision=PRECISIONS[unet.dtype], seed=0, device=str(unet.device)),
        )


def floor(backbone: Backbone, batch: int, count: int) -> Callable[[], None]:
    """The part of `count` training steps that nothing can avoid: the stock U-Net forward and backward, on latents and
    one plain encoding per sample that takes gradients."""
    unet: Any = backbone.unet
    device, dtype, frame = unet.device, unet.dtype, backbone.frame
    generator = torch.Generator().manual_seed(0)
    shape = (batch, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    noisy, noise = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    timesteps = torch.randint(1000, (batch,), generator=generator).to(device)
    text = torch.randn(batch, frame.tokens, frame.text_width, generator=generator).to(device, dtype).requires_grad_()

    def work() -> None:
        for _ in range(count):
            text.grad = None
            predicted = unet(noisy, timesteps, encoder_hidden_states=text).sample
            F.mse_loss(predicted.float(), noise.float()).backward()

    return work


def training_rows(config: BenchmarkConfig, subject: Subject, trainers: Trainers) -> list[Row]:
    """The step beside its floor, and beside the same samples in micro-batches."""
    backbone, batch, steps = trainers.backbone, config.batch, config.steps
    whole = trainers.make(batch)
    cut = trainers.make(batch // config.accumulation, config.accumulation)
    works = {
        "step": trainers.steps(whole, steps),
        "floor": floor(backbone, batch, steps),
        "cut": trainers.steps(cut, steps),
    }
    found = in_turn(works, config.repeats, backbone.unet.device)
    at_goal = (subject, batch) == (Subject.sd14, 8)
    in_parts = f"{config.accumulation} micro-batches of {batch // config.accumulation} / one batch of {batch}"
    rows = [
        _ratio(f"training step of {batch} / its floor", found["step"], found["floor"], config, at_goal),
        _ratio(in_parts, found["cut"], found["step"], config),
        _concept_row(config, found["step"], at_goal),
    ]
    if backbone.unet.device.type == "cuda":
        rows.append(Row("times a step waits for the device", f"{_waits(works['step']) / steps:g}", wanted="0"))
    return rows


def variant_rows(config: BenchmarkConfig, subject: Subject, trainers: Trainers) -> list[Row]:
    """What may make a step faster, each and all beside the code as it is; then the time that the best of them gives."""
    backbone, batch, steps = trainers.backbone, config.batch, config.steps
    unet = copy.deepcopy(backbone.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last = replace(backbone, unet=unet)
    made = {
        "as it is": trainers.make(batch),
        "channels_last": trainers.make(batch, backbone=last),
        "fused AdamW": _fused(trainers.make(batch)),
    }
    if backbone.unet.device.type == "cuda":  # on a CPU, compiling takes longer than a training
        made["optim.compile_unet"] = trainers.make(batch, compile_unet=True)
        made["all of them"] = _fused(trainers.make(batch, backbone=last, compile_unet=True))
    works = {name: trainers.steps(trainer, steps) for name, trainer in made.items()}
    found = in_turn(works, config.repeats, backbone.unet.device, count=False)
    plain = found["as it is"]
    rows = [_ratio(f"{name} / as it is", one, plain, config) for name, one in found.items() if one is not plain]
    best = min(found, key=lambda name: found[name].median)
    return [
        *rows,
        replace(_concept_row(config, found[best], (subject, batch) == (Subject.sd14, 8)), note=f"with {best}"),
    ]


def batch_rows(config: BenchmarkConfig, trainers: Trainers) -> list[Row]:
    """Training samples per second by batch size."""
    works = {str(size): trainers.steps(trainers.make(size), config.steps) for size in config.batches}
    found = in_turn(works, config.repeats, trainers.backbone.unet.device)
    return [
        Row(
            f"training, batch {size}",
            f"{int(size) * config.steps / timing.median:.3g} samples/s",
            note=f"{seconds(timing.median / config.steps)} per step",
        )
        for size, timing in found.items()
    ]


def _fused(trainer: Trainer) -> Trainer:
    """The same with PyTorch's fused AdamW."""
    for group in trainer.optimizer.param_groups:
        group["fused"] = True
    return trainer


def _ratio(what: str, one: Timing, other: Timing, config: BenchmarkConfig, at_goal: bool = False) -> Row:
    return Row(
        what,
        str(Ratio.of(one, other)),
        counted=f"{one.flops / other.flops:.2f}" if other.flops else "",
        wanted="at most 1.30" if at_goal else "",
        note=f"{seconds(one.median / config.steps)} / {seconds(other.median / config.steps)}",
    )


def _concept_row(config: BenchmarkConfig, step: Timing, at_goal: bool) -> Row:
    """How long a concept's training takes at this pace."""
    return Row(
        f"{CONCEPT_STEPS} steps of {config.batch}, extrapolated",
        seconds(CONCEPT_STEPS * step.median / config.steps),
        wanted="at most 90 s on an H100" if at_goal else "",
        note=f"{step.flops / config.steps / 1e12:.3g} TFLOP per step",
    )


def _waits(steps: Callable[[], None]) -> int:
    """How often the host waits for the CUDA device meanwhile, by PyTorch's own debugging mode."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            steps()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
