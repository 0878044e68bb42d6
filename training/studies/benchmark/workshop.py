"""The real trainer on pictures of noise, and the arithmetic of the frozen U-Net that no trainer can do without."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image

from ....models.attention.layers import cross_attention_layers
from ....models.backbone.backbone import Backbone
from ....models.backbone.denoiser import Denoiser
from ....models.conditioning.conditioning import Conditioning
from ....models.methods import NeTI, NeTIConfig, Start
from ...coach.launch import make_accelerator
from ...coach.plan import Setup, make_plan
from ...coach.run_folder import RunFolder
from ...coach.trainer import Trainer
from ...config.options import MixedPrecision, Tracker
from ...config.run import DataConfig, EvalConfig, LogConfig, OptimConfig, RunConfig
from ...data.dataset import ConceptDataset

PLACEHOLDER = "<concept>"
PICTURES = 3
PRECISIONS = {
    torch.float32: MixedPrecision.no,
    torch.float16: MixedPrecision.fp16,
    torch.bfloat16: MixedPrecision.bf16,
}


def new_method(backbone: Backbone) -> NeTI:
    """NeTI with its default settings, as a training begins with it."""
    width = backbone.frame.text_width
    start = Start(torch.ones(width) / width**0.5, torch.Generator().manual_seed(0))
    return NeTI.create(NeTIConfig(), backbone.frame, start).to(backbone.unet.device)


class Workshop:
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

    def trainer(self, batch: int, accumulation: int = 1, **optim: Any) -> Trainer:
        """A trainer before its first step; `batch` samples per micro-batch, `optim`: other optimisation settings."""
        config = self._config(OptimConfig(train_batch_size=batch, gradient_accumulation_steps=accumulation, **optim))
        method = new_method(self.backbone)
        norm = method.config.target_norm
        assert norm is not None
        setup = Setup(ConceptDataset(config.data, seed=0), self.backbone, method, norm, first_step=0)
        run = RunFolder(self.folder / f"run-{next(self._numbers)}", self.folder / "boards")
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
                placeholder_token=PLACEHOLDER,
                resolution=self.backbone.image_size,
                dataloader_num_workers=0,
            ),
            eval=EvalConfig(validation_prompts=None),
            optim=replace(optim, mixed_precision=PRECISIONS[unet.dtype], seed=0, device=str(unet.device)),
        )


def floor(backbone: Backbone, batch: int, count: int, stock: bool = False) -> Callable[[], None]:
    """The part of `count` training steps that nothing can avoid: U-Net forward and backward on latents, with a fixed
    conditioning that takes gradients, in our attention or in `stock` attention."""
    unet: Any = backbone.unet
    device, dtype, frame = unet.device, unet.dtype, backbone.frame
    generator = torch.Generator().manual_seed(0)
    shape = (batch, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    noisy, noise = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    timesteps = torch.randint(1000, (batch,), generator=generator).to(device)
    places = 1 if stock else frame.num_places
    context = torch.randn(places, batch, frame.tokens, frame.text_width, generator=generator).to(device, dtype)
    context.requires_grad_()
    denoiser = Denoiser(backbone)

    def work() -> None:
        for _ in range(count):
            context.grad = None
            if stock:
                predicted = unet(noisy, timesteps, encoder_hidden_states=context[0]).sample
            else:
                predicted = denoiser(noisy, timesteps, Conditioning(context, context))
            F.mse_loss(predicted.float(), noise.float()).backward()

    return work


@contextmanager
def stock_attention(backbone: Backbone) -> Iterator[None]:
    """The processors that diffusers itself gives cross-attention, whichever the U-Net has now."""
    modules: list[Any] = [backbone.unet.get_submodule(layer.path) for layer in cross_attention_layers(backbone.unet)]
    before = [module.processor for module in modules]
    for module in modules:
        module.set_processor(AttnProcessor2_0())
    try:
        yield
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.set_processor(processor)


def within(context: Any, work: Callable[[], None]) -> Callable[[], None]:
    """The work, done inside a context that `context()` makes."""

    def inside() -> None:
        with context():
            work()

    return inside
