"""A resumable training loop for the stages of pretraining.

A stage is a step function of the step number alone: its data and noise come from ``generator(seed, step)``. So a
checkpoint is weights, optimiser and a number, and a run that was cut into slices ends like one that was not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import parallel


@dataclass(frozen=True)
class Slice:
    """Where a stage keeps its checkpoint and how long this call may run.

    minutes: None to run to the end; shared: whether all processes take part, or only this one.
    """

    folder: Path
    name: str
    minutes: float | None = None
    save_every: int = 500
    log_every: int = 50
    shared: bool = False


def generator(seed: int, step: int) -> torch.Generator:
    """The random source of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def learning_rate(step: int, total: int, peak: float, warmup: int = 200, floor: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to ``floor`` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class EMA:
    """Exponential moving average of a module's parameters, warmed up so that early averages forget the start."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.module = decay, module
        self.average = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        values = self.module.state_dict()
        floating = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in floating], [values[n] for n in floating], 1 - decay)
        for name in values.keys() - set(floating):
            self.average[name].copy_(values[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, value in state.items():
            self.average[name].copy_(value)


def save_atomically(payload: Any, path: Path) -> None:
    """torch.save that never leaves half a file under ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(payload, temporary)
    os.replace(temporary, path)


def _say(line: str) -> None:
    if parallel.rank() == 0:
        print(line, flush=True)


def run(part: Slice, state: Mapping[str, Any], total: int, step: Callable[[int], dict[str, float]]) -> bool:
    """Run ``step(0..total-1)`` from the last checkpoint on. True when the stage is finished."""
    checkpoint = part.folder / f"{part.name}.pt"
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        for name, thing in state.items():
            thing.load_state_dict(saved[name])
        start = int(saved["step"])
        _say(f"{part.name}: resumed at step {start}/{total}")

    def save(done: int) -> None:
        if parallel.rank() == 0:
            save_atomically({"step": done, **{name: thing.state_dict() for name, thing in state.items()}}, checkpoint)

    began, sums = time.monotonic(), dict[str, float]()
    for count, number in enumerate(range(start, total), 1):
        for key, value in step(number).items():
            sums[key] = sums.get(key, 0.0) + value
        if count % part.log_every == 0:
            elapsed = time.monotonic() - began
            means = "  ".join(f"{key} {value / part.log_every:.4f}" for key, value in sums.items())
            rate = count / elapsed
            left = (total - number - 1) / rate / 60
            _say(f"{part.name} {number + 1}/{total}  {means}  {rate:.2f} steps/s  {left:.0f} min left")
            sums = {}
        done = number + 1
        out_of_time = part.minutes is not None and time.monotonic() - began > part.minutes * 60
        out_of_time = parallel.first_says(out_of_time) if part.shared else out_of_time
        if done % part.save_every == 0 or done == total or out_of_time:
            save(done)
        if out_of_time and done < total:
            _say(f"{part.name}: time slice used, stopped at step {done}/{total}")
            return False
    return True
