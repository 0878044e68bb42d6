"""The process of one training: python -m neti.training.app.learning.process OUTPUTS QUEUED.yaml

It is its own session, so it outlives the page and the server that started it, and tells how far it is in files.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ....utils.config.parsing import parse_config
from ....utils.errors import UserError, first_line
from ....utils.files import write_json
from ...coach.logs import Watcher
from ...config.run import RunConfig
from ..places import Places

if TYPE_CHECKING:
    from ...coach.plan import RunPlan

LOCK = "training.lock"  # held while a training runs
HOLDER = "training.json"  # whose it is: {"pid": ..., "run": ...}
PATIENCE = 5  # seconds: whoever looks whether the lock is free holds it for a moment
EVERY = 0.5  # seconds between two notes of how far it is
NICE = 5  # drawing for somebody who waits goes first


class Record(Watcher):
    """Keeps {run}.json up to date: step, last step, seconds per step of this call, notes and, if it fails, why."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: dict[str, Any] = {
            "step": 0,
            "last_step": 0,
            "seconds_per_step": None,
            "notes": [],
            "error": None,
        }
        self._first_step, self._started, self._written = 0, 0.0, 0.0

    def planned(self, plan: RunPlan, text: str) -> None:
        self.write(plan=text)

    def note(self, text: str) -> None:
        self.write(notes=[*self.state["notes"], text])

    def started(self, step: int, last_step: int) -> None:
        self._first_step, self._started = step, time.monotonic()
        self.write(step=step, last_step=last_step)

    def stepped(self, step: int, loss: float | None) -> None:
        seconds = (time.monotonic() - self._started) / max(step - self._first_step, 1)
        self.state |= {"step": step, "seconds_per_step": seconds}
        if time.monotonic() - self._written > EVERY or step == self.state["last_step"]:
            self.write()

    def write(self, **changes: object) -> None:
        self.state |= changes
        self._written = time.monotonic()
        with suppress(UserError):  # a full disk is the training's to report
            write_json(self.state, self.path)


def main(outputs: Path, queued: Path) -> int:
    """Train what the queued file asks for, unless another training runs; the exit code of `launch`."""
    places = Places(outputs)
    lock = FileLock(places.runs / LOCK, timeout=PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        return 0  # it stays in the queue
    name = queued.stem.partition("-")[2]
    write_json({"pid": os.getpid(), "run": name}, places.runs / HOLDER)
    record = Record(places.runs / f"{name}.json")
    record.write()
    asked = places.runs / f"{name}.yaml"
    try:
        queued.rename(asked)
    except FileNotFoundError:
        return 0  # taken out of the queue meanwhile
    with suppress(OSError):
        os.nice(NICE)
    try:
        from ...coach.launch import launch  # takes seconds to import

        return launch(parse_config(RunConfig, ["--config_path", str(asked)]), record)
    except UserError as error:
        record.write(error=str(error).replace("\n", "; "))
        return 2
    except Exception as error:
        record.write(error=f"{type(error).__name__}: {first_line(error)}")
        raise
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
