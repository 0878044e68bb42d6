"""The trainings: a queue on the disk, one process at a time, and what each has come to.

All of it is files, so that a page that is loaded again, and a server that is started again, find everything as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ....utils.config.choices import Choice
from ....utils.config.parsing import parse_config, save_yaml
from ....utils.errors import UserError, shown
from ....utils.files import read_json_object
from ...coach.logs import read_records
from ...config.run import RunConfig
from ..places import Places
from .process import HOLDER, LOCK

EVERY = 1.0  # seconds between two looks at the queue
_GRID = re.compile(r"step-(\d+)\.png")


class State(Choice):
    """Where a training stands."""

    queued = "queued"
    starting = "starting"
    training = "training"
    stopped = "stopped"
    failed = "failed"
    done = "done"


@dataclass(frozen=True)
class Status:
    """What a run has come to. losses: (step, loss); grid: the newest validation grid; error: why it failed."""

    name: str
    state: State
    step: int = 0
    last_step: int = 0
    seconds_left: float | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    grid: Path | None = None
    error: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def can_stop(self) -> bool:
        return self.state in (State.queued, State.starting, State.training)

    @property
    def can_resume(self) -> bool:
        return self.state in (State.stopped, State.failed)


class Runs:
    """The trainings of one outputs folder."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._process: subprocess.Popen[bytes] | None = None
        self._changing = threading.Lock()

    def start(self) -> None:
        """Begin to work on the queue, in a thread of its own."""
        threading.Thread(target=self._work, daemon=True, name="trainings").start()

    def add(self, config: RunConfig) -> str:
        """Put a training at the end of the queue; gives its name. A run that is there already goes on."""
        config = dataclasses.replace(config, resume="latest", overwrite=False)
        name = config.log.exp_name
        save_yaml(config, self.places.queue / f"{self._next_number():06d}-{name}.yaml")
        return name

    def names(self) -> list[str]:
        """All runs: the one that trains, those that wait, then the others, newest first."""
        active = [name] if (name := self._active()) else []
        folders = (path.parent for path in self.places.outputs.glob("*/config.yaml"))
        others = [*self.places.runs.glob("*.yaml"), *folders]
        others.sort(key=lambda path: -path.stat().st_mtime)
        return list(dict.fromkeys([*active, *self._queued(), *(path.name.removesuffix(".yaml") for path in others)]))

    def status(self, name: str) -> Status:
        """Read from the run's files. UserError if there is no such run."""
        self._require(name)
        folder = self.places.outputs / name
        record = self._record(name)
        losses = [(entry["step"], entry["loss"]) for entry in _records(folder / "metrics.jsonl") if "loss" in entry]
        step = max(int(record.get("step") or 0), losses[-1][0] if losses else 0)
        last_step = int(record.get("last_step") or 0) or self._last_step(name)
        state = self._state(name, record, step, last_step)
        pace = record.get("seconds_per_step")
        left = pace * (last_step - step) if pace and state is State.training else None
        grids = {int(match[1]): path for path in folder.glob("validation/*") if (match := _GRID.fullmatch(path.name))}
        warnings = [note for note in record.get("notes", []) if note.startswith("warning: ")]
        error = str(record.get("error") or "") if state is State.failed else ""
        return Status(name, state, step, last_step, left, losses, grids[max(grids)] if grids else None, error, warnings)

    def stop(self, name: str) -> None:
        """Let a training save and stop; one that waits leaves the queue. Both can go on later."""
        with self._changing:
            if name in self._queued():
                self._queued()[name].rename(self.places.runs / f"{name}.yaml")
            elif name == self._active():
                os.kill(int(self._holder()["pid"]), signal.SIGTERM)
            else:
                raise UserError(f"{shown(name)} is not being trained from here")

    def resume(self, name: str) -> None:
        """Put a stopped or failed run at the end of the queue again. UserError if it is not one."""
        status = self.status(name)
        if not status.can_resume:
            raise UserError(f"{name} is {status.state}, so there is nothing to go on with")
        self.add(self._config(name))

    def _work(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # a full disk: the queue waits
                self.advance()
            threading.Event().wait(EVERY)

    def advance(self) -> None:
        """Start the next training, if none runs."""
        with self._changing:
            waiting = list(self._queued().values())
            if not waiting or (self._process is not None and self._process.poll() is None) or self._is_locked():
                return
            command = [sys.executable, "-m", f"{__package__}.process", str(self.places.outputs), str(waiting[0])]
            with open(self.places.runs / "output.txt", "ab") as output:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )

    def _state(self, name: str, record: dict[str, Any], step: int, last_step: int) -> State:
        if name in self._queued():
            is_next = name == next(iter(self._queued())) and not self._active()
            return State.starting if is_next and self._process and self._process.poll() is None else State.queued
        if name == self._active():
            return State.training if record.get("last_step") else State.starting
        if record.get("error"):
            return State.failed
        return State.done if last_step and step >= last_step else State.stopped

    def _queued(self) -> dict[str, Path]:
        paths = sorted(self.places.queue.glob("*.yaml"))
        return {path.stem.partition("-")[2]: path for path in paths}

    def _next_number(self) -> int:
        return max((int(path.name.partition("-")[0]) for path in self.places.queue.glob("*.yaml")), default=0) + 1

    def _is_locked(self) -> bool:
        try:
            with FileLock(self.places.runs / LOCK, timeout=0):
                return False
        except Timeout:
            return True

    def _holder(self) -> dict[str, Any]:
        try:
            return read_json_object(self.places.runs / HOLDER, "record of the training")
        except UserError:
            return {}

    def _active(self) -> str:
        """The run that trains now; empty if none does."""
        return str(self._holder().get("run", "")) if self._is_locked() else ""

    def _record(self, name: str) -> dict[str, Any]:
        try:
            return read_json_object(self.places.runs / f"{name}.json", "record of the run")
        except UserError:
            return {}

    def _require(self, name: str) -> None:
        if name not in self.names():
            raise UserError(f"there is no run called {shown(name)}")

    def _config(self, name: str) -> RunConfig:
        self._require(name)
        asked = self.places.runs / f"{name}.yaml"
        path = asked if asked.exists() else self.places.outputs / name / "config.yaml"
        config = parse_config(RunConfig, ["--config_path", str(path)])
        model = dataclasses.replace(config.model, mapper_checkpoint_path=None)  # a run that goes on has its own
        return dataclasses.replace(config, model=model)

    def _last_step(self, name: str) -> int:
        try:
            return self._config(name).optim.max_train_steps
        except UserError:
            return 0


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(UserError):
        yield from read_records(path)
