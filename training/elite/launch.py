"""One call from a configuration to a trained stage of an encoder: check, plan, print, train."""

from __future__ import annotations

import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import diffusers
import torch
import transformers
from accelerate import Accelerator

from ...models.backbone.backbone import Backbone
from ...models.methods.elite.encoder import Encoder
from ...models.methods.elite.files import load_encoder
from ...models.methods.elite.mappers import GlobalMapper, LocalMapper
from ...models.methods.elite.vision import load_vision
from ...utils.config.parsing import save_yaml, to_plain_dict
from ..coach.launch import make_accelerator
from ..coach.setup import DTYPES
from ..coach.state import check_unchanged, state_to_resume
from ..config.run import RunConfig
from ..miniature.world.world import World
from .config import GLOBAL, EncoderConfig
from .folder import FolderSamples
from .run_folder import EncoderRun
from .samples import Samples
from .trainer import EncoderTrainer
from .world import WorldSamples

SCALING_SAMPLES = 16  # pictures whose words are measured before the first step


def launch(config: EncoderConfig) -> int:
    """Do what `config` asks for and return the exit code: 0, or 128 + the number of the signal that stopped the run.

    Raises UserError, whatever can be checked beforehand before anything is written.
    """
    accelerator = make_accelerator(cast(RunConfig, config))  # which has the same keys for it
    try:
        return _launch(config, accelerator)
    finally:
        accelerator.end_training()


def _launch(config: EncoderConfig, accelerator: Accelerator) -> int:
    optim = config.optim
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    lasting = replace(config, resume=None, overwrite=False, dry_run=False)
    run = EncoderRun(config.log.run_dir, config.log.tracker_dir)
    state = state_to_resume(config.resume, config.overwrite, run)
    facts = {"the number of processes": accelerator.num_processes}
    if state is not None:
        check_unchanged(state, to_plain_dict(lasting), facts)
    backbone = Backbone.from_pretrained(
        config.model.pretrained_model_name_or_path,
        revision=config.model.revision,
        dtype=DTYPES[optim.mixed_precision],
        device=accelerator.device,
    )
    encoder = make_encoder(config, backbone)
    samples = make_samples(config, encoder)
    if config.stage is GLOBAL:
        start_words(encoder, samples, backbone)
    if accelerator.is_main_process:
        print(describe(config, backbone, encoder), flush=True)
    if config.dry_run:
        return 0
    for part in (encoder.vision, encoder.of_words, encoder.of_patches):
        if part is not None:
            part.to(accelerator.device)
    trainer = EncoderTrainer(lasting, backbone, encoder, samples, accelerator, run, facts, state)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if config.overwrite:
            run.clear()
        run.path.mkdir(parents=True, exist_ok=True)
        save_yaml(lasting, run.config)
    number = trainer.train()
    if number is None:
        print(f"done: {run.encoder(trainer.step)}")
        return 0
    command = shlex.join(["python", sys.argv[0], "--config_path", str(run.config), "--resume", "latest"])
    print(f"stopped by {signal.Signals(number).name} after step {trainer.step}, all saved; go on with\n    {command}")
    return 128 + number


def make_encoder(config: EncoderConfig, backbone: Backbone) -> Encoder:
    """The encoder as the stage begins: a new global mapper, or a finished one with a new local mapper."""
    layers, text_width = backbone.frame.layers, backbone.frame.text_width
    torch.manual_seed(config.optim.seed)
    if config.stage is GLOBAL:
        vision = load_vision(config.model.vision)
        of_hub = not Path(config.model.vision).is_dir() and not config.optim.vision_lr  # else it is stored beside them
        tower = config.model.vision if of_hub else ""
        encoder = Encoder(vision, GlobalMapper(layers, vision.width, text_width), tower=tower)
        encoder.of_words.copy_from(backbone.unet, layers)
        return encoder
    assert config.model.encoder is not None
    encoder = load_encoder(config.model.encoder, backbone.frame, config.model.vision)
    encoder.of_patches = LocalMapper(layers, encoder.vision.width, text_width)
    encoder.of_patches.copy_from(backbone.unet, layers)
    return encoder


def start_words(encoder: Encoder, samples: Samples, backbone: Backbone) -> None:
    """Give the new words the length of those that the text encoder knows."""
    pictures = torch.stack([samples[number].image for number in range(SCALING_SAMPLES)])
    known = backbone.text_encoder.embeddings.token_embedding.weight
    norm = torch.linalg.vector_norm(known.float(), dim=-1).mean().item()
    encoder.of_words.scale_words(encoder.vision(pictures), norm)


def make_samples(config: EncoderConfig, encoder: Encoder) -> Samples:
    """The pictures to learn from."""
    data, optim = config.data, config.optim
    if data.images is not None:
        return FolderSamples(data, config.stage, seed=optim.seed, side=encoder.vision.side)
    world = World.create("cpu", data.font)
    return WorldSamples(
        world, data, config.stage, seed=optim.seed, side=encoder.vision.side, batch_size=optim.train_batch_size
    )


def describe(config: EncoderConfig, backbone: Backbone, encoder: Encoder) -> str:
    """The plan as the table that is printed before training."""
    mapper = encoder.of_words if config.stage is GLOBAL else encoder.of_patches
    assert mapper is not None
    optim = config.optim
    lines = {
        "run": f"{config.log.run_dir}, seed {optim.seed}",
        "stage": f"{config.stage}, {sum(p.numel() for p in mapper.parameters()):,} trained parameters",
        "model": backbone.name,
        "vision tower": f"layers {list(encoder.vision.layers)}, {encoder.vision.patches} patches",
        "pictures": str(config.data.images or "the miniature's world"),
        "steps": f"{optim.max_train_steps}, batch {optim.train_batch_size} x accumulation "
        f"{optim.gradient_accumulation_steps}",
        "learning rate": f"{optim.effective_lr:g}, {optim.lr_scheduler}",
    }
    return "\n".join(f"{name:<14} {text}" for name, text in lines.items())
