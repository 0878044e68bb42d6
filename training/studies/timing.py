"""Pieces of work timed in turn, so that a busy machine slows all of them alike, with their arithmetic counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

GIB = 2**30
fused_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
# PyTorch's counter knows the GPU's fused attention kernels, but not the CPU's
CPU_ATTENTION = {
    fused_attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda out, q, k, v, *_, **__: sdpa_backward_flop_count(out, q, k, v)
    ),
}


@dataclass(frozen=True)
class Row:
    """what: was measured. value: the result. counted: what the arithmetic alone would give. wanted: the aim, if any.

    note: the seconds behind a ratio, or how the number came about.
    """

    what: str
    value: str
    counted: str = ""
    wanted: str = ""
    note: str = ""


def seconds(value: float) -> str:
    """With three digits: 1.23 s, 45.6 ms."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


@dataclass(frozen=True)
class Timing:
    """One piece of work: seconds of each round, and its floating-point operations (matrix products, convolutions)."""

    seconds: tuple[float, ...]
    flops: int

    @property
    def median(self) -> float:
        return median(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """How many times as long one piece of work takes as another: median over the rounds, smallest, largest."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, one: Timing, other: Timing) -> Ratio:
        ratios = [a / b for a, b in zip(one.seconds, other.seconds, strict=True)]
        return cls(median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def in_turn(
    works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, count: bool = True
) -> dict[str, Timing]:
    """Do all pieces of work `repeats` times, A B A B ...; first once untimed, which counts their operations.

    count: False where the work compiles itself, which the counter would disturb.
    """
    flops = {}
    for name, work in works.items():
        counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        with counter if count else nullcontext():
            work()
        flops[name] = counter.get_total_flops()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            wait_for(device)
            began = time.perf_counter()
            work()
            wait_for(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: Timing(tuple(seconds[name]), flops[name]) for name in works}


def wait_for(device: torch.device) -> None:
    """Until the device has done all that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
