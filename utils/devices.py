"""Devices: from a name in a config to one that is there, small tensors on their way, and what a report says of it.

torch is imported by the functions that need it: configs check a device's name without the seconds that it takes.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError, shown

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow")  # those whose version may move a number
DEVICE_PATTERN = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def pick_device(name: str, key: str = "device") -> torch.device:
    """The device called `name`: `auto` (CUDA, else Apple's MPS, else the CPU), `cpu`, `mps`, `cuda` or `cuda:N`.

    Raises UserError, naming the config `key`, when the device is not there: never a silent fall-back to the CPU.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{key} = {shown(name)} is no device; write auto, cpu, mps, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(
                f"{key} = {shown(name)}, but PyTorch {torch.__version__} sees no CUDA device here; "
                f"write cpu or auto, or install a CUDA build of PyTorch and check nvidia-smi"
            )
        if device.index is not None and device.index >= count:
            raise UserError(f"{key} = {shown(name)}, but the CUDA devices here are cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            f"{key} = {shown(name)}, but PyTorch {torch.__version__} sees no MPS device here; write cpu or auto"
        )
    return device


def allow_tf32(allowed: bool) -> None:
    """Whether float32 products on NVIDIA GPUs since Ampere may round their factors to TF32's 11 bits, cuDNN's included,
    which does so unless it is forbidden."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def device_problems(key: str, device: str) -> list[str]:
    """One line if `device` is not the name of any device (whether it is there is asked when it is used)."""
    if DEVICE_PATTERN.fullmatch(device):
        return []
    return [f"{key} = {device!r} is no device; write auto, cpu, mps, cuda or cuda:N"]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`. On CUDA an ordinary copy waits for all queued work; one from pinned memory joins the queue.

    For numbers drawn or looked up on the CPU at every step. A training step that uses nothing else never waits.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def library_versions() -> dict[str, str]:
    """The installed versions of this project and of the libraries that decide its numbers."""
    return {name: _version(name) for name in ("neti", *LIBRARIES)}


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, PyTorch's threads, operating system, and the versions that matter."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # used from its folder
        return "not installed"


def _processor() -> str:
    """The processor's own name where Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
