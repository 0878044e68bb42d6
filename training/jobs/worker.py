"""What happens inside a worker, wherever it runs: a task in, a plain outcome back."""

from __future__ import annotations

import os
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils.errors import UserError, first_line

Work = Callable[[Any, Any], Any]  # (a job's task, the result of the job it needs or None) -> the job's result, for JSON
MakeWork = Callable[[str], Work]  # device -> what a worker does; called once in every worker


class Stopped(Exception):
    """A signal stopped a job, which goes on from where it was when it is done again; `code`: the exit code for it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Outcome:
    """What became of a job. error None: done. retry: another try may end otherwise; stopped: exit code of `Stopped`."""

    result: Any = None
    seconds: float = 0.0
    worker: str = ""
    error: str | None = None
    details: str = ""
    retry: bool = True
    stopped: int | None = None


class Worker:
    """Does one job after another; whatever it loads for one, such as a base model, is there for the next."""

    def __init__(self, make: MakeWork, device: str, threads: int | None) -> None:
        self.make, self.device, self.threads = make, device, threads
        self.work: Work | None = None

    def ready(self) -> bool:
        """A sign of life."""
        return True

    def do(self, task: Any, needed: Any) -> Outcome:
        """The outcome of a job. Nothing is raised: an exception may be of a class that only this process knows."""
        start = time.monotonic()
        place = f"{platform.node()}:{os.getpid()}"
        try:
            if self.work is None:
                if self.threads is not None:
                    import torch

                    torch.set_num_threads(self.threads)
                self.work = self.make(self.device)
            return Outcome(self.work(task, needed), time.monotonic() - start, place)
        except Stopped as stop:
            return Outcome(worker=place, error=f"stopped by {signal.Signals(stop.code - 128).name}", stopped=stop.code)
        except UserError as error:
            return Outcome(worker=place, error=str(error).replace("\n", "; "), retry=False)
        except Exception as error:
            message = f"{type(error).__name__}: {first_line(error)}"
            return Outcome(worker=place, error=message, details=traceback.format_exc())


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """What is printed goes to the end of a file: the plans and bars of hundreds of trainings help nobody on screen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        yield
