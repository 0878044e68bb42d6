"""One call from a configuration to a trained concept: check, plan, tell, train."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any

import diffusers
import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object

from ...models.backbone.backbone import Backbone
from ...models.backbone.loading import WEIGHTS
from ...utils.config.parsing import save_yaml, to_plain_dict
from ...utils.devices import allow_tf32, pick_device
from ...utils.errors import UserError, first_line, shorten
from ..config.run import MixedPrecision, RunConfig, Tracker
from ..data.dataset import ConceptDataset
from . import state as states
from .logs import Console, Watcher, read_records
from .plan import PLANNING_PARTS, describe, make_plan, set_up, weight_checksums
from .run_folder import RunFolder, require_folder
from .state import check_unchanged, check_weights, state_to_resume
from .trainer import Trainer

PATIENCE = timedelta(hours=12)  # of processes that wait for the one that makes the validation grids
LAUNCHER_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launch(config: RunConfig, watcher: Watcher | None = None, backbone: Backbone | None = None) -> int:
    """Do what `config` asks for and return the exit code: 0, or 128 + the number of the signal that stopped the run.

    watcher: who follows the run and may stop it, which counts as Ctrl-C; the console unless another is given. In a
    thread beside the main one, signals are not listened to. One run at a time in one process.
    backbone: the configuration's base model at its precision, where it is loaded already; many runs may share it.
    Raises UserError, whatever can be checked beforehand before anything is written.
    """
    accelerator = make_accelerator(config)
    diffusers.utils.logging.disable_progress_bar()  # one progress bar is enough: the training's
    transformers.utils.logging.disable_progress_bar()
    watcher = (watcher or Console()) if accelerator.is_main_process else Watcher()
    try:
        return _launch(config, accelerator, watcher, backbone)
    finally:
        watcher.stopped()
        release(accelerator)


def _launch(config: RunConfig, accelerator: Accelerator, watcher: Watcher, backbone: Backbone | None) -> int:
    run = RunFolder(config.log.run_dir, config.log.tracker_dir)
    lasting = dataclasses.replace(config, resume=None, overwrite=False, dry_run=False)  # what the run is, not this call
    drawn: list[Any] = broadcast_object_list([secrets.randbits(31)])
    with one_for_all(accelerator):
        if accelerator.is_main_process:
            run.check_places()
            if config.log.report_to in (Tracker.tensorboard, Tracker.all):
                require_folder(config.log.tracker_dir)
            run.check_free()
        found = run.derived_text()
        state = state_to_resume(config.resume, config.overwrite, run)
        if state is not None:
            read_records(run.metrics)
        seed = config.optim.seed if config.optim.seed is not None else state.seed if state else int(drawn[0])
        dataset = ConceptDataset(config.data, seed)
        dataset.check_images()
        facts: dict[str, Any] = {
            "data.train_data_dir (its images and captions)": dataset.fingerprint(),
            "the number of processes": accelerator.num_processes,
        }
        if state is not None:
            check_unchanged(state, to_plain_dict(lasting), facts)
        parts = PLANNING_PARTS if config.dry_run else WEIGHTS
        device = torch.device("cpu") if config.dry_run else accelerator.device
        encoded = state.facts.get(states.START) if state is not None else None
        setup = set_up(config, dataset, device=device, parts=parts, backbone=backbone, encoded=encoded)
        if setup.encoded is not None:
            facts[states.START] = setup.encoded
        facts[states.WEIGHTS] = weight_checksums(setup.backbone)
        if state is not None:
            check_weights(state, facts[states.WEIGHTS])
        plan = make_plan(config, setup, accelerator.num_processes)
    watcher.planned(plan, describe(config, setup, plan))
    if state is not None:
        source = run.state(state.step) if config.resume == "latest" else config.resume
        watcher.note(
            f"resumed from {source}: concept, optimizer, learning-rate schedule and step {state.step} (sample "
            f"{state.step * plan.samples_per_step}); all randomness follows from seed {state.seed}"
        )
    elif config.resume is not None:
        watcher.note(f"resumed: nothing, {run.path} holds no training state yet; starting at step {plan.first_step}")
    if config.dry_run:
        watcher.note("dry run: all checks passed, nothing was written")
        return 0

    trainer = Trainer(lasting, setup, plan, accelerator, run, facts, state, watcher)
    with ExitStack() as held:
        with one_for_all(accelerator):  # and every process has looked at the run folder before one writes into it
            if accelerator.is_main_process:
                held.enter_context(run.lock())
                if run.derived_text() != found:
                    raise UserError(f"another process has trained into {run.path} meanwhile; give the command again")
                run.begin({"run_folder": str(run.path), **dataclasses.asdict(plan)}, overwrite=config.overwrite)
                save_yaml(lasting, run.config)  # whole or not at all: a resumed run reads the very file
        signal_number = trainer.train()
    if signal_number is None:
        watcher.note(f"done: {run.concept(config.optim.max_train_steps)}")
        return 0
    watcher.note(
        f"stopped by {signal.Signals(signal_number).name} after step {trainer.step}, all saved; go on with\n"
        f"    {resume_command(config, run, plan.processes)}"
    )
    return 128 + signal_number


@contextmanager
def one_for_all(accelerator: Accelerator) -> Iterator[None]:
    """What one process finds wrong stops them all, with its message: else the others would wait for it for hours."""
    own = None
    try:
        yield
    except UserError as error:
        own = error
    found = [message for message in gather_object([str(own) if own else None]) if message is not None]
    if found:
        raise own or UserError(found[0])


def release(accelerator: Accelerator) -> None:
    """Let the trackers, and all that a run held, go."""
    with suppress(OSError):  # a tracker on a full disk, which was warned of when it began
        accelerator.end_training()
    accelerator.free_memory()  # it, the trainer and the model refer to one another
    _forget_processes()


def _forget_processes() -> None:
    """Of accelerate's state, which is one per Python process: the next run may have another device or precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


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
    allow_tf32(False)  # the objective switches it on where it is wanted
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not os.environ.get("RANK"):
            raise ValueError("RANK is missing")  # else this process would wait for the others for hours
        return Accelerator(
            cpu=on_cpu,
            mixed_precision=optim.mixed_precision.value,
            gradient_accumulation_steps=optim.gradient_accumulation_steps,
            log_with=None if report_to is Tracker.none else report_to.value,
            project_dir=str(config.log.tracker_dir),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except ValueError as error:
        _forget_processes()  # half made, it would break the next run
        seen = ", ".join(f"{name}={shorten(os.environ[name], 40)}" for name in LAUNCHER_VARIABLES if name in os.environ)
        raise UserError(
            f"the processes cannot be set up: {first_line(error)} (environment: {seen or 'none of a launcher'}); unset "
            "these variables, or start several processes by `accelerate launch`"
        ) from error


def resume_command(config: RunConfig, run: RunFolder, processes: int) -> str:
    """The command that goes on with a run, ready to be pasted."""
    launcher = ["python"]
    if processes > 1:
        launcher = ["accelerate", "launch", "--multi_gpu", "--num_processes", str(processes)]
    options = ["--config_path", str(run.config), "--resume", "latest"]
    if config.model.mapper_checkpoint_path is not None:
        options += ["--model.mapper_checkpoint_path", "null"]  # a resumed run has its own concept
    return shlex.join([*launcher, sys.argv[0], *options])
