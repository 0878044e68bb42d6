"""What the workers of test_jobs do: they live in processes of their own, which import this file."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from neti.training.jobs.worker import MakeWork, Stopped, Work
from neti.utils.errors import UserError


def making(folder: Path) -> MakeWork:
    """Work that writes down everything it does to files of `folder`."""
    return partial(_make, folder)


def _make(folder: Path, device: str) -> Work:
    _note(folder / "loaded", f"{os.getpid()} {device}")
    return partial(_do, folder)


def _do(folder: Path, task: dict[str, Any], needed: Any) -> dict[str, Any]:
    name = task["name"]
    _note(folder / "done", name)
    tries = (folder / "done").read_text().splitlines().count(name)
    match task.get("act"):
        case "mistake":
            raise UserError("the photo is broken\ntwo lines of it")
        case "fail":
            raise RuntimeError("always")
        case "fail once" if tries == 1:
            raise RuntimeError("only once")
        case "die once" if tries == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "until stopped":
            stopped = []
            signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
            (folder / "at work").touch()
            while not stopped:
                time.sleep(0.01)
            raise Stopped(128 + signal.SIGTERM)
        case "wait":
            (folder / "at work").touch()
            time.sleep(600)
    time.sleep(task.get("seconds", 0))
    return {"of": name, "needed": needed, "pid": os.getpid()}


def _note(path: Path, line: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
