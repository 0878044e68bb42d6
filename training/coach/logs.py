"""The loss curve: `metrics.jsonl` for programs, always; TensorBoard, Weights & Biases or Comet for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from accelerate import Accelerator
from PIL import Image

from ...utils.files import write_atomically

PROJECT = "neti"


class MetricsLog:
    """The main process writes, the others only take part. On a resume at step `start`, later records are dropped."""

    def __init__(self, path: Path, accelerator: Accelerator, run_name: str, start: int = 0) -> None:
        self._accelerator = accelerator
        accelerator.init_trackers(
            PROJECT, init_kwargs={"tensorboard": {"purge_step": start + 1}, "wandb": {"name": run_name}}
        )
        self._file: TextIO | None = None
        if accelerator.is_main_process:
            kept = "".join(json.dumps(record) + "\n" for record in _complete_records(path) if record["step"] <= start)
            write_atomically(path, lambda file: file.write(kept.encode()))
            self._file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Record numbers after `step` optimizer steps."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        self._accelerator.log(values, step=step)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Show an image on the boards that take images; the file itself is the caller's."""
        for tracker in self._accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: np.asarray(image.convert("RGB"))[None]}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({name: [image]}, step=step)

    def close(self) -> None:
        """Close the file; `accelerator.end_training` closes the boards."""
        if self._file is not None:
            self._file.close()


def _complete_records(path: Path) -> list[dict[str, Any]]:
    """The records of the run's earlier part; the last line may be half of one."""
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
