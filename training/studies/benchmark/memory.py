"""Rows about memory: peaks of processes of their own, which do nothing but train or make an image."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from ....models.generation.config import Dtype
from ....utils.devices import pick_device
from ....utils.errors import UserError
from ..timing import GIB, Row
from .config import BenchmarkConfig, Subject

IMAGE_STEPS = 3


def memory_rows(config: BenchmarkConfig, subject: Subject) -> list[Row]:
    """Peak memory of a training with batch 1 under checkpointing, and of making one image."""
    on_cuda = pick_device(config.device).type == "cuda"
    dtype = Dtype.fp16 if on_cuda and config.dtype is Dtype.fp32 else config.dtype
    limits = {"training": "6 GB", "image": "4 GB"} if on_cuda and subject is Subject.sd14 else {}
    rows = []
    for what, name in {"training": "training, batch 1, gradient checkpointing", "image": "one image"}.items():
        bytes_, before = peak(replace(config, dtype=dtype), subject, what)
        kind = "allocated on the GPU" if on_cuda else f"resident, {before / GIB:.2f} GiB of it before the model"
        wanted = f"at most {limits[what]}" if what in limits else ""
        name += ", with safety checker" * (what == "image" and subject is Subject.sd14)
        rows.append(Row(f"peak memory: {name}, {dtype}", f"{bytes_ / GIB:.2f} GiB", wanted=wanted, note=kind))
    return rows


def peak(config: BenchmarkConfig, subject: Subject, what: str) -> tuple[int, int]:
    """Of a process that only does this: its peak in bytes, and what it had before the model. UserError if it dies."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure_peak, config, subject, what).result()
        except Exception as error:  # a process that the system ended for memory leaves no word of its own
            raise UserError(f"measuring the memory of {what} failed: {error or type(error).__name__}") from error


def measure_peak(config: BenchmarkConfig, subject: Subject, what: str) -> tuple[int, int]:
    """Do it once, in this process; returns the peak in bytes, and what stood in memory before the model."""
    from ....models.generation.run import DTYPES
    from ..random_weights import safety_checker
    from .images import images
    from .training import Trainers, make_backbone

    device, before = pick_device(config.device), resident()
    backbone = make_backbone(config, subject)
    if what == "training":
        with tempfile.TemporaryDirectory() as folder:
            trainers = Trainers(backbone, Path(folder))
            trainers.steps(trainers.make(1, gradient_checkpointing=True), 2)()
    else:
        checker = safety_checker(device, DTYPES[config.dtype.value]) if subject is Subject.sd14 else None
        images(backbone, 1, IMAGE_STEPS, checker)()
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident()), before


def resident() -> int:
    """The largest memory that this process ever had, in bytes.

    On Linux from /proc: `ru_maxrss` goes on with what the process that started this one had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
