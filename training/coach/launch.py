"""One call from a configuration to a trained concept: check, plan, tell, train."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import shlex
import signal
import sys
from typing import Any

import diffusers
import torch
import transformers
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list

from ...models.backbone.loading import WEIGHTS
from ...utils.config.parsing import save_yaml, to_plain_dict
from ...utils.devices import pick_device
from ...utils.errors import UserError
from ...utils.files import write_json
from ..config.run import MixedPrecision, RunConfig, Tracker
from ..data.photos import ConceptDataset
from .plan import describe, estimate, make_plan
from .run_folder import RunFolder
from .setup import PLANNING_PARTS, set_up
from .state import TrainingState, check_unchanged, state_to_resume
from .trainer import Trainer


def launch(config: RunConfig) -> int:
    """Do what `config` asks for and return the exit code: 0, or 128 + the number of the signal that stopped the run.

    Raises UserError, whatever can be checked beforehand before anything is written.
    """
    accelerator = make_accelerator(config)
    diffusers.utils.logging.disable_progress_bar()  # one progress bar is enough: the training's
    transformers.utils.logging.disable_progress_bar()
    try:
        return _launch(config, accelerator)
    finally:
        accelerator.end_training()


def _launch(config: RunConfig, accelerator: Accelerator) -> int:
    def tell(text: str) -> None:
        if accelerator.is_main_process:
            print(text, flush=True)

    run = RunFolder(config.log.run_dir, config.log.tracker_dir)
    lasting = dataclasses.replace(config, resume=None, overwrite=False, dry_run=False)  # what the run is, not this call
    state = state_to_resume(config.resume, config.overwrite, run)
    dataset = ConceptDataset(config.data, _seed(config, state))
    dataset.check_images()
    facts = {
        "data.train_data_dir (its images and captions)": fingerprint(dataset),
        "the number of processes": accelerator.num_processes,
    }
    if state is not None:
        check_unchanged(state, to_plain_dict(lasting), facts)
    parts = PLANNING_PARTS if config.dry_run else WEIGHTS
    device = torch.device("cpu") if config.dry_run else accelerator.device
    setup = set_up(config, dataset, device=device, parts=parts)
    plan = make_plan(config, setup, accelerator.num_processes)
    if accelerator.is_main_process:
        memory = (
            estimate(config, setup) if config.dry_run else None
        )  # takes longer than the first steps on a small model
        print(describe(config, setup, plan, memory), flush=True)
    if state is not None:
        source = run.state(state.step) if config.resume == "latest" else config.resume
        tell(
            f"resumed from {source}: concept, optimizer, learning-rate schedule and step {state.step} (sample "
            f"{state.step * plan.samples_per_step}); all randomness follows from seed {state.seed}"
        )
    elif config.resume is not None:
        tell(f"resumed: nothing, {run.path} holds no training state yet; starting at step {plan.first_step}")
    if config.dry_run:
        tell("dry run: all checks passed, nothing was written")
        return 0

    trainer = Trainer(lasting, setup, plan, accelerator, run, facts, state)
    accelerator.wait_for_everyone()  # every process has looked at the run folder before one writes into it
    if accelerator.is_main_process:
        if config.overwrite:
            run.clear()
        run.remove_leftovers()
        write_json({"run_folder": str(run.path), **dataclasses.asdict(plan)}, run.derived)
        whole = run.config.with_name(".config.yaml.tmp")  # a resumed run reads the very file that is written here
        save_yaml(lasting, whole)
        whole.replace(run.config)
    signal_number = trainer.train()
    if signal_number is None:
        tell(f"done: {run.concept(config.optim.max_train_steps)}")
        return 0
    tell(
        f"stopped by {signal.Signals(signal_number).name} after step {trainer.step}, all saved; go on with\n"
        f"    {resume_command(config, run, plan.processes)}"
    )
    return 128 + signal_number


def make_accelerator(config: RunConfig) -> Accelerator:
    """The Accelerator for the wanted device, precision and trackers. Raises UserError for what is not there."""
    optim, report_to = config.optim, config.log.report_to
    if optim.device != "auto":
        device = pick_device(optim.device, "optim.device")
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    if report_to not in (Tracker.none, Tracker.all) and report_to.value not in [
        str(t) for t in get_available_trackers()
    ]:
        raise UserError(
            f"log.report_to = {report_to}: {report_to} is not installed; run `pip install {report_to}` or write none"
        )
    on_cpu = optim.device == "cpu" or (optim.device == "auto" and pick_device("auto").type == "cpu")
    if on_cpu and optim.mixed_precision is MixedPrecision.fp16:
        raise UserError("optim.mixed_precision = fp16 needs a GPU, and the device is the CPU; write bf16 or no")
    torch.backends.cuda.matmul.allow_tf32 = optim.allow_tf32
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=optim.mixed_precision.value,
        gradient_accumulation_steps=optim.gradient_accumulation_steps,
        log_with=None if report_to is Tracker.none else report_to.value,
        project_dir=str(config.log.tracker_dir),
    )


def fingerprint(dataset: ConceptDataset) -> str:
    """A hash of what is learned from: the images' bytes and captions in their order, wherever the folder lies."""
    digest = hashlib.sha256()
    for path, caption in zip(dataset.paths, dataset.captions, strict=True):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
        digest.update(repr(caption).encode())
    return digest.hexdigest()[:16]


def resume_command(config: RunConfig, run: RunFolder, processes: int) -> str:
    """The command that goes on with a run, ready to be pasted."""
    launcher = ["python"]
    if processes > 1:
        launcher = ["accelerate", "launch", "--multi_gpu", "--num_processes", str(processes)]
    options = ["--config_path", str(run.config), "--resume", "latest"]
    if config.model.mapper_checkpoint_path is not None:
        options += ["--model.mapper_checkpoint_path", "null"]  # a resumed run has its own concept
    return shlex.join([*launcher, sys.argv[0], *options])


def _seed(config: RunConfig, state: TrainingState | None) -> int:
    """The run's seed: as given, else that of the state, else drawn by one process for all."""
    if config.optim.seed is not None:
        return config.optim.seed
    if state is not None:
        return state.seed
    drawn: list[Any] = [secrets.randbits(31)]
    return int(broadcast_object_list(drawn)[0])
