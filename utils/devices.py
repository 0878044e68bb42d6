"""From a device's name in a config to a device that is there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:  # configs check the name of a device without the seconds that torch takes
    import torch

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
        raise UserError(f"{key} = {name!r} is no device; write auto, cpu, mps, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(
                f"{key} = {name!r}, but PyTorch {torch.__version__} sees no CUDA device here; "
                f"write cpu or auto, or install a CUDA build of PyTorch and check nvidia-smi"
            )
        if device.index is not None and device.index >= count:
            raise UserError(f"{key} = {name!r}, but the CUDA devices here are cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{key} = {name!r}, but PyTorch {torch.__version__} sees no MPS device here; write cpu or auto")
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
