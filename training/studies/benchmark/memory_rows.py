"""Rows about memory: peaks of processes of their own, which do nothing but train or make an image.

    python -m neti.training.studies.benchmark.memory_rows {training|inference} --name ... (as scripts/benchmark.py)

prints one line of JSON: the peak in bytes, and what stood in memory before the model, both 0 where it does not apply.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from ....utils.config.parsing import parse_config, save_yaml
from ....utils.devices import pick_device
from ....utils.errors import UserError
from .config import BenchmarkConfig, Dtype, Subject
from .rows import Row

GIB = 2**30
IMAGE_STEPS = 3


def memory_rows(config: BenchmarkConfig, subject: Subject) -> list[Row]:
    """Peak memory of a training with batch 1 under checkpointing, and of making one image."""
    on_cuda = pick_device(config.device).type == "cuda"
    dtype = Dtype.fp16 if on_cuda and config.dtype is Dtype.fp32 else config.dtype
    limits = {"training": "6 GB", "inference": "4 GB"} if on_cuda and subject is Subject.sd14 else {}
    names = {"training": "training, batch 1, gradient checkpointing", "inference": "one image"}
    rows = []
    for what, name in names.items():
        peak, before = _measure(replace(config, models=(subject,), dtype=dtype), what)
        kind = "allocated on the GPU" if on_cuda else f"resident, {before / GIB:.2f} GiB of it before the model"
        wanted = f"at most {limits[what]}" if what in limits else ""
        rows.append(Row(f"peak memory: {name}, {dtype}", f"{peak / GIB:.2f} GiB", wanted=wanted, note=kind))
    return rows


def _measure(config: BenchmarkConfig, what: str) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "benchmark.yaml"
        save_yaml(config, settings)
        command = [sys.executable, "-m", __name__, what, "--config_path", str(settings)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"measuring the memory of {what} failed: {(done.stderr.strip() or '?').splitlines()[-1]}")
    peak, before = json.loads(done.stdout.splitlines()[-1])
    return peak, before


def _resident() -> int:
    """The largest memory this process ever had, in bytes; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(what: str, config: BenchmarkConfig) -> None:
    """Do it once, in this process, and print [peak, before]."""
    from .sampling_rows import images
    from .subjects import make_backbone
    from .workshop import Workshop

    before = _resident()
    backbone = make_backbone(config, config.models[0])
    if what == "training":
        with tempfile.TemporaryDirectory() as folder:
            workshop = Workshop(backbone, Path(folder))
            workshop.steps(workshop.trainer(1, gradient_checkpointing=True), 2)()
    else:
        images(backbone, [0], IMAGE_STEPS)()
    on_cuda = backbone.unet.device.type == "cuda"
    print(json.dumps([torch.cuda.max_memory_allocated() if on_cuda else _resident(), before]))


if __name__ == "__main__":
    main(sys.argv[1], parse_config(BenchmarkConfig, sys.argv[2:]))
