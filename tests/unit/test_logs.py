"""What a run reports: metrics.jsonl, the trackers, the console; and that none of them can end a training."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neti.training.coach.logs import Console, MetricsLog, read_records
from neti.training.coach.run_folder import RunFolder
from neti.training.config.options import Tracker
from neti.training.config.run import DataConfig, LogConfig, RunConfig
from neti.utils.errors import UserError


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run", tmp_path / "run" / "logs")
    run.begin({"run_folder": "run"}, overwrite=False)
    return run


def make_config(**log: Any) -> RunConfig:
    return RunConfig(LogConfig("toy", **{"report_to": Tracker.none, **log}), DataConfig(Path("images"), "<toy>"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_of_a_killed_run_are_cut_at_the_resumed_step(run: RunFolder, accelerator: Accelerator) -> None:
    run.metrics.write_text(
        '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 3.0}\n{"step": 4, "lo'
    )
    metrics = MetricsLog(run, make_config(), accelerator, start=2)
    metrics.scalars(3, {"loss": 3.5})
    metrics.close()
    assert lines(run.metrics) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 3.5}]


NO_LOGS = [
    b"\x00\xff\n",
    b"[1]\n",
    b'{"loss": 1}\n',
    b'{"step": "1"}\n',
    b'{"step": 1\n{"step": 2}\n',
    b"[" * 9999 + b"\n",
]


@pytest.mark.parametrize("content", NO_LOGS)
def test_what_is_no_log_of_a_run_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl is not the log of a run, or damaged"):
        read_records(path)
    path.unlink()
    assert read_records(path) == []


def test_a_full_disk_does_not_end_the_training_and_the_records_come_later(
    run: RunFolder, accelerator: Accelerator
) -> None:
    """No file may grow beyond a limit that cuts the third record in its middle; then there is room again."""
    warnings: list[str] = []
    metrics = MetricsLog(run, make_config(), accelerator, warnings.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
    try:
        for step in range(1, 6):
            metrics.scalars(step, {"loss": 0.5})
        assert run.metrics.stat().st_size == 60
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (warning,) = warnings
    assert re.match(r"warning: \S+metrics\.jsonl cannot be written \(.*File too large\); the training goes on", warning)
    metrics.close()
    assert [record["step"] for record in lines(run.metrics)] == [1, 2, 3, 4, 5]


def test_the_trackers_are_given_the_settings_under_the_projects_name(run: RunFolder) -> None:
    config = make_config(report_to=Tracker.tensorboard, project="cats")
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(run.trackers))
    metrics = MetricsLog(run, config, accelerator)
    metrics.scalars(1, {"loss": 0.5})
    metrics.close()
    accelerator.end_training()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    (file,) = run.events()
    assert file.parent == run.path / "logs" / "cats"
    assert str(file.relative_to(run.path)) in json.loads(run.derived.read_text())["files"]
    settings = EventAccumulator(str(file.parent)).Reload().SummaryMetadata("_hparams_/session_start_info")
    content = settings.plugin_data.content
    assert b"optim.learning_rate" in content and b"data.placeholder_token" in content and b"<toy>" in content


def test_a_tracker_that_fails_does_not_end_the_training(run: RunFolder, accelerator: Accelerator) -> None:
    class Offline(GeneralTracker):
        name = "offline"
        requires_logging_directory = False
        tracker = None

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.settings = values

        def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
            raise ConnectionError("no network")

    tracker, warnings = Offline(), []  # type: ignore[var-annotated]
    accelerator.log_with = [tracker]
    metrics = MetricsLog(run, make_config(), accelerator, warnings.append)
    assert tracker.settings["optim.max_train_steps"] == 1000
    metrics.scalars(1, {"loss": 0.5})
    metrics.scalars(2, {"loss": 0.5})
    metrics.close()
    assert warnings == ["warning: the trackers cannot be written (no network); the training goes on"]
    assert len(lines(run.metrics)) == 2


def unread_stream() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize("steps", [0, 2])
def test_a_reader_that_leaves_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Before the bar is drawn, which it is when it is made, or later."""
    with unread_stream() as out, unread_stream() as unread, open(os.devnull, "w") as read:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", read if steps else unread)
        console = Console()
        console.note("planned")
        console.started(0, 4)
        for step in range(1, 5):
            if step > steps:
                monkeypatch.setattr(console._bar, "fp", unread) if console._bar else None
            console.stepped(step, 0.5)
        monkeypatch.setattr(sys, "stderr", unread)
        console.note("warning: no grid")
        console.note("done")
        console.stopped()
        for stream in (out, unread):
            print("and nothing waits in the buffer", file=stream, flush=True)
