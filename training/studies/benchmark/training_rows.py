"""Rows about training: the step against its floor, accumulation, and batch sizes."""

from __future__ import annotations

import warnings
from functools import partial

import torch

from ...coach.trainer import Trainer
from .config import BenchmarkConfig, Subject
from .rows import Row, seconds
from .timing import Ratio, Timing, in_turn
from .workshop import Workshop, floor, stock_attention, within

CONCEPT_STEPS = 1000


def training_rows(config: BenchmarkConfig, subject: Subject, workshop: Workshop) -> list[Row]:
    """The step beside its floor, twice, and beside the same samples in micro-batches."""
    backbone, batch = workshop.backbone, config.batch
    device = backbone.unet.device
    whole = workshop.trainer(batch)
    cut = workshop.trainer(batch // config.accumulation, config.accumulation)
    own, stock = (floor(backbone, batch, config.steps, stock) for stock in (False, True))
    works = {
        "step": workshop.steps(whole, config.steps),
        "floor": own,
        "stock floor": within(partial(stock_attention, backbone), stock),
        "cut": workshop.steps(cut, config.steps),
    }
    found = in_turn(works, config.repeats, device)
    aim = "at most 1.30" if (subject, batch) == (Subject.sd14, 8) else ""
    rows = [
        _ratio(f"training step of {batch} / its floor", found["step"], found["floor"], aim, config.steps),
        _ratio("the same / the floor with stock attention", found["step"], found["stock floor"], aim, config.steps),
        _ratio(
            f"{config.accumulation} micro-batches of {batch // config.accumulation} / one batch of {batch}",
            found["cut"],
            found["step"],
            "",
            config.steps,
        ),
    ]
    concept = CONCEPT_STEPS * found["step"].median / config.steps
    aim = "at most 90 s on an H100" if (subject, batch) == (Subject.sd14, 8) else ""
    told = f"{found['step'].flops / config.steps / 1e12:.3g} TFLOP per step"
    rows.append(Row(f"{CONCEPT_STEPS} steps of {batch}, extrapolated", seconds(concept), "", aim, told))
    if device.type == "cuda":
        rows.append(Row("times a step waits for the device", f"{_waits(whole):g}", "", "0"))
    return rows


def batch_rows(config: BenchmarkConfig, workshop: Workshop) -> list[Row]:
    """Training samples per second by batch size."""
    works = {str(size): workshop.steps(workshop.trainer(size), config.steps) for size in config.batches}
    found = in_turn(works, config.repeats, workshop.backbone.unet.device)
    return [
        Row(
            f"training, batch {size}",
            f"{int(size) * config.steps / timing.median:.3g} samples/s",
            note=f"{seconds(timing.median / config.steps)} per step",
        )
        for size, timing in found.items()
    ]


def _ratio(what: str, one: Timing, other: Timing, wanted: str, steps: int) -> Row:
    return Row(
        what,
        str(Ratio.of(one, other)),
        counted=f"{one.flops / other.flops:.2f}",
        wanted=wanted,
        note=f"{seconds(one.median / steps)} / {seconds(other.median / steps)}",
    )


def _waits(trainer: Trainer, steps: int = 4) -> float:
    """How often the host waits for the CUDA device in a step, by PyTorch's own debugging mode."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                trainer.take_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught) / steps
