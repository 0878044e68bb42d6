"""One call from a configuration to a trained stage of an encoder: check, plan, tell, train."""

from __future__ import annotations

import shlex
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
import transformers
from accelerate import Accelerator

from ...models.backbone.backbone import Backbone
from ...models.conditioning.conditioning import plain_condition
from ...models.methods.elite.encoder import Encoder
from ...models.methods.elite.files import load_encoder
from ...models.methods.elite.mappers import GlobalMapper, LocalMapper
from ...models.methods.elite.vision import load_vision
from ...utils.config.parsing import save_yaml, to_plain_dict
from ...utils.errors import UserError
from ..coach.launch import make_accelerator, one_for_all, release
from ..coach.logs import Console, Watcher
from ..coach.plan import DTYPES
from ..coach.state import check_unchanged, state_to_resume
from ..config.run import RunConfig
from ..miniature.world.world import World
from .config import GLOBAL, EncoderConfig, Stage
from .folder import FolderSamples
from .run_folder import EncoderRun
from .samples import Samples
from .trainer import EncoderTrainer
from .world import WorldSamples

SCALING_SAMPLES = 16  # pictures whose words or patches are measured before the first step


def launch(config: EncoderConfig) -> int:
    """Do what `config` asks for and return the exit code: 0, or 128 + the number of the signal that stopped the run.

    Raises UserError, whatever can be checked beforehand before anything is written.
    """
    accelerator = make_accelerator(cast(RunConfig, config))  # which has the same keys for it
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    watcher = Console() if accelerator.is_main_process else Watcher()
    try:
        return _launch(config, accelerator, watcher)
    finally:
        watcher.stopped()
        release(accelerator)


def _launch(config: EncoderConfig, accelerator: Accelerator, watcher: Watcher) -> int:
    run = EncoderRun(config.log.run_dir, config.log.tracker_dir)
    lasting = replace(config, resume=None, overwrite=False, dry_run=False)
    settings = plain_settings(lasting)
    facts = {"the number of processes": accelerator.num_processes}
    with one_for_all(accelerator):
        if accelerator.is_main_process:
            run.check_places()
            run.check_free()
        found = run.derived_text()
        state = state_to_resume(config.resume, config.overwrite, run)
        if state is not None:
            check_unchanged(state, settings, facts)
        backbone = Backbone.from_pretrained(
            config.model.pretrained_model_name_or_path,
            revision=config.model.revision,
            dtype=DTYPES[config.optim.mixed_precision],
            device=accelerator.device,
        )
        encoder, is_new = make_encoder(config, backbone)
        samples = make_samples(config, encoder)
        if is_new:
            scale_to_text(encoder, samples, backbone, config.stage)
    watcher.note(describe(config, backbone, encoder, accelerator.num_processes))
    if config.dry_run:
        watcher.note("dry run: all checks passed, nothing was written")
        return 0

    for part in (encoder.vision, encoder.of_words, encoder.of_patches):
        if part is not None:
            part.to(accelerator.device)
    trainer = EncoderTrainer(lasting, backbone, encoder, samples, accelerator, run, settings, facts, state, watcher)
    with ExitStack() as held:
        with one_for_all(accelerator):
            if accelerator.is_main_process:
                held.enter_context(run.lock())
                if run.derived_text() != found:
                    raise UserError(f"another process has trained into {run.path} meanwhile; give the command again")
                run.begin({"run_folder": str(run.path)}, overwrite=config.overwrite)
                save_yaml(lasting, run.config)
        number = trainer.train()
    if trainer.skipped:
        watcher.note(
            f"{trainer.skipped} times an object was skipped: a file that cannot be read, or a size out of range"
        )
    if number is None:
        watcher.note(f"done: {run.concept(trainer.step)}")
        return 0
    command = shlex.join(["python", sys.argv[0], "--config_path", str(run.config), "--resume", "latest"])
    name = signal.Signals(number).name
    watcher.note(f"stopped by {name} after step {trainer.step}, all saved; go on with\n    {command}")
    return 128 + number


def plain_settings(config: EncoderConfig) -> dict[str, Any]:
    """The settings that a resumed run must have too."""
    settings = to_plain_dict(config)
    del settings["data"]["workers"]
    return settings


def make_encoder(config: EncoderConfig, backbone: Backbone) -> tuple[Encoder, bool]:
    """The encoder to train, and whether the mapper of this stage is new: random MLPs, and the U-Net's own matrices."""
    frame = backbone.frame
    torch.manual_seed(config.optim.seed)
    if config.model.encoder is not None:
        encoder = load_encoder(config.model.encoder, frame, config.model.vision)
        if config.optim.vision_lr:
            encoder.tower = ""  # it will not be the hub's any more
        if config.stage is GLOBAL or encoder.of_patches is not None:
            return encoder, False
        encoder.of_patches = LocalMapper(frame.layers, encoder.vision.width, frame.text_width)
        encoder.of_patches.copy_from(backbone.unet, frame.layers)
        return encoder, True
    vision = load_vision(config.model.vision)
    is_of_hub = not Path(config.model.vision).is_dir() and not config.optim.vision_lr  # else it is stored too
    of_words = GlobalMapper(frame.layers, vision.width, frame.text_width)
    of_words.copy_from(backbone.unet, frame.layers)
    return Encoder(vision, of_words, tower=config.model.vision if is_of_hub else ""), True


@torch.no_grad()
def scale_to_text(encoder: Encoder, samples: Samples, backbone: Backbone, stage: Stage) -> None:
    """Give a new mapper's output the length of what stands in its place: token embeddings, or text encodings.

    Differs from the reference, whose words start many times longer, and whose patches many times shorter: attention to
    them is even, and it takes tens of thousands of steps until it is not.
    """
    batch = [samples[number] for number in range(SCALING_SAMPLES)]
    if stage is GLOBAL:
        mapper: GlobalMapper | LocalMapper = encoder.of_words
        output = encoder.of_words(encoder.vision(torch.stack([sample.image for sample in batch])))
        known = backbone.text_encoder.embeddings.token_embedding.weight
    else:
        assert encoder.of_patches is not None
        mapper = encoder.of_patches
        features = encoder.vision(torch.stack([sample.object for sample in batch]))
        output = mapper(features, torch.ones(len(batch), encoder.vision.patches, 1))
        known = plain_condition(backbone.text, [""], backbone.frame).keys[0]
    lengths = [torch.linalg.vector_norm(vectors.float(), dim=-1).mean().item() for vectors in (known, output)]
    mapper.scale_output(lengths[0] / lengths[1])


def make_samples(config: EncoderConfig, encoder: Encoder) -> Samples:
    """The pictures to learn from."""
    data, optim = config.data, config.optim
    if data.images is not None:
        return FolderSamples(data, config.stage, seed=optim.seed, side=encoder.vision.side)
    world = World.create("cpu", data.font)
    return WorldSamples(
        world, data, config.stage, seed=optim.seed, side=encoder.vision.side, batch_size=optim.train_batch_size
    )


def describe(config: EncoderConfig, backbone: Backbone, encoder: Encoder, processes: int) -> str:
    """The plan as the table that is printed before training."""
    mapper = encoder.of_words if config.stage is GLOBAL else encoder.of_patches
    assert mapper is not None
    optim, vision = config.optim, encoder.vision
    samples = optim.train_batch_size * optim.gradient_accumulation_steps * processes
    lines = {
        "run": f"{config.log.run_dir}, seed {optim.seed}",
        "stage": f"{config.stage}, {sum(p.numel() for p in mapper.parameters()):,} trained parameters",
        "model": f"{backbone.name}, {len(backbone.frame.layers)} cross-attention layers",
        "vision tower": f"{encoder.tower or 'its own'}, layers {list(vision.layers)}, {vision.patches} patches",
        "pictures": str(config.data.images or "the miniature's world"),
        "steps": f"{optim.max_train_steps}, {samples} samples each: batch {optim.train_batch_size} x accumulation "
        f"{optim.gradient_accumulation_steps} x processes {processes}",
        "learning rate": f"{optim.effective_lr:g}, {optim.lr_scheduler}",
        "precision": f"{optim.mixed_precision} (what is trained always float32)",
        "saves": f"every {config.log.save_steps} steps",
    }
    return "\n".join(f"{name:<14} {text}" for name, text in lines.items())
