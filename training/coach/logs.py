"""What a run reports: to whoever watches it, to `metrics.jsonl` for programs, to TensorBoard and others for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image
from pyrallis.utils import flatten
from tqdm.auto import tqdm

from ...utils.config.parsing import to_plain_dict
from ...utils.errors import UserError, discard, first_line
from ...utils.files import write_atomically
from ..config.run import RunConfig
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .plan import RunPlan


class Watcher:
    """Follows one run, and does nothing: the base of those who do something.

    Called by the main process in the thread that trains, which waits for it; an exception ends the run.
    """

    def planned(self, plan: RunPlan, text: str) -> None:
        """What will be done, once it is checked; `text` says it to people, in several lines."""

    def note(self, text: str) -> None:
        """Something to be read: where a run goes on from, how it ended, and whatever begins with "warning: "."""

    def started(self, step: int, last_step: int) -> None:
        """The first step comes next; `step` are done, of an earlier call."""

    def stepped(self, step: int, loss: float | None) -> None:
        """`step` optimizer steps are done. loss: the mean since it was last read from the device; None in between."""

    def saved(self, step: int, concept: Path) -> None:
        """Concept and state of this step are on the disk."""

    def grid(self, step: int, path: Path, image: Image.Image) -> None:
        """A validation grid is on the disk; its name tells truncation and settings."""

    def stopped(self) -> None:
        """The run is over, whether it is done, was stopped or failed."""

    def wants_stop(self) -> bool:
        """Whether the run is to save and stop; asked all the time, so it must answer at once."""
        return False


class Console(Watcher):
    """What scripts/train.py shows: lines, and a progress bar on stderr. A reader that leaves does not end the run."""

    def __init__(self) -> None:
        self._bar: Any = None

    def planned(self, plan: RunPlan, text: str) -> None:
        self.note(text)

    def note(self, text: str) -> None:
        stream = sys.stderr if text.startswith("warning: ") else sys.stdout
        with _outliving(stream), tqdm.external_write_mode(file=stream):
            print(text, file=stream, flush=True)

    def started(self, step: int, last_step: int) -> None:
        seconds = 0.1 if sys.stderr is not None and sys.stderr.isatty() else 10.0  # a log file needs no animation
        with _outliving(sys.stderr):
            self._bar = tqdm(
                desc="training",
                initial=step,
                total=last_step,
                unit="step",
                mininterval=seconds,
                disable=sys.stderr is None,
            )

    def stepped(self, step: int, loss: float | None) -> None:
        with _outliving(sys.stderr):
            if self._bar is not None and loss is not None:
                self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if self._bar is not None:  # which is drawn as soon as it is made, and that may have failed
                self._bar.update()

    def stopped(self) -> None:
        with _outliving(sys.stderr):
            if self._bar is not None:
                self._bar.close()


@contextmanager
def _outliving(stream: TextIO) -> Iterator[None]:
    """Go on, in silence, once the pipe is closed, the terminal gone or the disk full."""
    try:
        yield
    except OSError:
        discard(stream)


class MetricsLog:
    """The main process writes, the others only take part. On a resume at step `start`, later records are dropped.

    A log that cannot be written, on a full disk, is no reason to lose the training: `warn` is called once, and what
    `metrics.jsonl` lacks is written as soon as there is room.
    """

    def __init__(
        self,
        run: RunFolder,
        config: RunConfig,
        accelerator: Accelerator,
        warn: Callable[[str], None] = lambda text: None,
        start: int = 0,
    ) -> None:
        self._accelerator, self._warn, self._path = accelerator, warn, run.metrics
        self._file: FileIO | None = None
        self._unwritten = b""
        self._failed: set[str] = set()
        before = run.events()
        options = {"tensorboard": {"purge_step": start + 1}, "wandb": {"name": config.log.exp_name}}
        try:
            accelerator.init_trackers(config.log.project, init_kwargs=options)
        except Exception as error:  # each tracker has its own kinds: not logged in, no network, a full disk
            raise UserError(
                f"log.report_to = {config.log.report_to} cannot be started: {first_line(error)}; mend it, or write none"
            ) from error
        if accelerator.is_main_process:
            run.expect(*(path for path in run.events() if path not in before))
            for tracker in accelerator.trackers:
                _describe(tracker, config)
            kept = [record for record in read_records(run.metrics) if record["step"] <= start]
            text = "".join(json.dumps(record) + "\n" for record in kept)
            write_atomically(run.metrics, lambda file: file.write(text.encode()))
            self._file = FileIO(run.metrics, "a")  # without a buffer, which could fail again when it is closed

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Record numbers after `step` optimizer steps."""
        self._unwritten += json.dumps({"step": step, **values}).encode() + b"\n"
        self._write()
        with self._outliving("the trackers"):
            self._accelerator.log(values, step=step)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Show an image in the trackers that take images; the file itself is the caller's."""
        with self._outliving("the trackers"):
            for tracker in self._accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.log_images({name: np.asarray(image.convert("RGB"))[None]}, step=step, dataformats="NHWC")
                elif tracker.name == "wandb":
                    tracker.log_images({name: [image]}, step=step)

    def sync(self) -> None:
        """Bring what was recorded to the disk: before a state that counts on it."""
        self._write()
        if self._file is not None:
            with self._outliving(str(self._path)):
                os.fsync(self._file)

    def close(self) -> None:
        """Close the file; `accelerator.end_training` closes the trackers."""
        self._write()
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        if self._file is not None:
            with self._outliving(str(self._path)):
                while self._unwritten:  # a disk that gets full takes a part
                    self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    @contextmanager
    def _outliving(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each tracker has its own kinds
            if what not in self._failed:
                self._warn(f"warning: {what} cannot be written ({first_line(error)}); the training goes on")
            self._failed.add(what)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a run's earlier part, without a half-written last line; none if there is no file.

    Raises UserError for a file that is no log of a run.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        records = [json.loads(line) for line in lines]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; move it away") from None
    except (ValueError, RecursionError):
        records = [None]
    if not all(isinstance(record, dict) and isinstance(record.get("step"), int) for record in records):
        raise UserError(
            f"{path} is not the log of a run, or damaged; move it away, and the run goes on without its past"
        )
    return records


def _describe(tracker: GeneralTracker, config: RunConfig) -> None:
    """Tell a tracker the run's settings."""
    settings = flatten(to_plain_dict(config))
    settings = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in settings.items()}
    if tracker.name != "tensorboard":
        tracker.store_init_configuration(settings)
        return
    from torch.utils.tensorboard.summary import hparams  # there where the tracker is

    for summary in hparams(settings, {}):  # `add_hparams` would begin a second run beside this one
        tracker.writer.file_writer.add_summary(summary)
