"""The training loop of all stages of pretraining: resumable, and for stages that allow it shared by several processes.

A stage is a loss as a function of the step's number alone: its data and noise come from ``generator(seed, step)``. So a
checkpoint is weights, optimizer and a number, and a run that was cut into slices ends like one that was not.

Launched with ``torchrun --nproc_per_node 2 scripts/pretrain_miniature.py ...``, each process takes its share of the
batch. The batch, its noise and so the result are those of one process, but for rounding: a run may go on with another
number of processes than it began with.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ....utils.devices import pick_device
from ....utils.errors import UserError
from ....utils.files import write_atomically

PATIENCE = timedelta(days=2)  # a process waits while the first one runs the stages that are not shared
SAVE_EVERY, LOG_EVERY = 200, 50  # steps
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Slice:
    """Where a stage keeps its checkpoint, and how many minutes this call may run (None: to the end).

    shared: all processes take part, not only this one.
    """

    folder: Path
    name: str
    minutes: float | None = None
    shared: bool = False


def join_processes(device: str) -> torch.device:
    """Join the processes that torchrun started, if it did; returns the device of this one."""
    place = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if place.type == "cuda":
            place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(place)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    return place


def rank() -> int:
    """This process's number, 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def first_says(flag: bool) -> bool:
    """The first process's answer, in all of them."""
    answer = [flag]
    if dist.is_initialized():
        dist.broadcast_object_list(answer, 0)
    return answer[0]


def own_share(batch: int) -> slice:
    """The samples of a batch that are this process's. UserError if they cannot be shared evenly."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if batch % processes:
        raise UserError(f"batch = {batch} cannot be shared evenly by {processes} processes; choose a multiple")
    return slice(rank(), None, processes)


def shared(module: nn.Module) -> nn.Module:
    """The module to call in a loss that several processes share: its gradients are their mean."""
    return DistributedDataParallel(module) if dist.is_initialized() else module


def generator(seed: int, step: int) -> torch.Generator:
    """The random source of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def run(
    part: Slice,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    loss: Callable[[int], dict[str, Tensor]],
    *,
    ema: float,
    warmup: int = 200,
) -> nn.Module | None:
    """Minimise `loss(step)["loss"]` from the last checkpoint on; its other entries are only shown.

    The learning rate rises over `warmup` steps and falls to 0 like a cosine; gradients are clipped to norm 1. Returns
    the module with averaged weights, in eval mode, or None when the time was used up first. UserError if the
    checkpoint is damaged or of another model.
    """
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    average = AveragedModel(module, multi_avg_fn=_warmed_up(ema))
    state: dict[str, Any] = {"model": module, "optimizer": optimizer, "schedule": schedule, "average": average}
    checkpoint = part.folder / f"{part.name}.pt"
    start = _restore(checkpoint, state) if checkpoint.exists() else 0
    if start:
        _say(f"{part.name}: resumed at step {start}/{steps}")
    began, sums = time.monotonic(), dict[str, float]()
    for step in range(start, steps):
        values = loss(step)
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(module)
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        done, elapsed = step + 1, time.monotonic() - began
        if (done - start) % LOG_EVERY == 0:
            means = "  ".join(f"{name} {value / LOG_EVERY:.4f}" for name, value in sums.items())
            pace = elapsed / (done - start)
            left = (steps - done) * pace / 60
            _say(f"{part.name} {done}/{steps}  {means}  {1 / pace:.2f} steps/s  {left:.0f} min left")
            sums.clear()
        out_of_time = part.minutes is not None and elapsed > part.minutes * 60
        out_of_time = first_says(out_of_time) if part.shared else out_of_time
        if (done % SAVE_EVERY == 0 or done == steps or out_of_time) and rank() == 0:
            saved = {name: each.state_dict() for name, each in state.items()}
            save({"step": done, **saved}, checkpoint)
        if out_of_time and done < steps:
            _say(f"{part.name}: time slice used, stopped at step {done}/{steps}")
            return None
    return average.module.eval()


def save(payload: Any, path: Path) -> None:
    """torch.save that never leaves half a file under ``path``."""
    write_atomically(path, lambda file: torch.save(payload, file))


def _warmed_up(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average whose early values forget the start sooner."""

    def update(averaged: Any, current: Any, count: Tensor) -> None:
        get_ema_multi_avg_fn(min(decay, (1 + int(count)) / (10 + int(count))))(averaged, current, count)

    return update


def _restore(checkpoint: Path, state: dict[str, Any]) -> int:
    """Fill `state` from the checkpoint and return its step."""
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        for name, each in state.items():
            each.load_state_dict(saved[name])
        return int(saved["step"])
    except Exception as error:  # what torch raises for a damaged or foreign file is of every kind
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{checkpoint} is damaged, or was saved with other settings ({reason}); go back to those settings, or "
            "choose another work_dir"
        ) from error


def _say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)
