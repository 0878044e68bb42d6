"""The whole benchmark: measure the chosen sections, keep the results as JSON, write the page."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ....utils.config.parsing import to_plain_dict
from ....utils.devices import describe_machine, pick_device
from ....utils.errors import UserError
from ....utils.image_files import write_atomically, write_json
from .commands import Commands
from .config import BenchmarkConfig, Section, Subject
from .page import render_page
from .rows import Row

Tables = dict[str, list[Row]]  # title -> rows


def write_benchmark(config: BenchmarkConfig, scripts: Path, tell: Callable[[str, list[Row]], None]) -> None:
    """Measure, telling each table when it is there; write work_dir/NAME.json, then the page with all such files.

    scripts: the folder of train.py. Raises UserError for a missing training config, before anything is measured.
    """
    if not config.train_config.is_file():
        raise UserError(f"train_config = {config.train_config}: no such file; start in the project's folder")
    machine = _machine(config)  # with the load that others put on it, before ours
    tables: Tables = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, rows in _measure(config, Commands(config, scripts, Path(folder) / "runs"), Path(folder)):
            tables[title] = rows
            tell(title, rows)
    write_json(
        {
            "settings": _settings(config),
            "machine": machine,
            "tables": {title: [asdict(row) for row in rows] for title, rows in tables.items()},
        },
        config.work_dir / f"{config.name}.json",
    )
    chapters = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(config.work_dir.glob("*.json"))
    }
    page = render_page(chapters)
    write_atomically(config.docs_dir / "performance.md", lambda file: file.write(page.encode()))


def _measure(config: BenchmarkConfig, commands: Commands, folder: Path) -> Iterator[tuple[str, list[Row]]]:
    from .memory_rows import memory_rows
    from .numerics_rows import numerics_rows
    from .startup_rows import process_rows, startup_rows

    for subject in config.models:
        yield from _of_model(config, subject, folder / str(subject))
        if Section.memory in config.sections:
            yield f"{subject}: memory", memory_rows(config, subject)
    if Section.startup in config.sections:
        yield "miniature: waiting", startup_rows(config, commands)
    if Section.scaling in config.sections:
        yield "miniature: processes", process_rows(config, commands)
    if Section.numerics in config.sections:
        yield "miniature: precision", numerics_rows(config, commands)


def _of_model(config: BenchmarkConfig, subject: Subject, folder: Path) -> Iterator[tuple[str, list[Row]]]:
    """The sections that share one model in memory, which is gone when they are done."""
    from .sampling_rows import sampling_rows, seed_rows
    from .subjects import make_backbone
    from .training_rows import batch_rows, training_rows
    from .workshop import Workshop

    wanted = set(config.sections) & {Section.training, Section.sampling, Section.scaling}
    if not wanted:
        return
    backbone = make_backbone(config, subject)
    workshop = Workshop(backbone, folder)
    if Section.sampling in wanted:
        backbone.vae.to(backbone.unet.device)
        yield f"{subject}: images", sampling_rows(config, subject, backbone)
    if Section.training in wanted:
        yield f"{subject}: training", training_rows(config, subject, workshop)
    if Section.scaling in wanted:
        rows = batch_rows(config, workshop)
        backbone.vae.to(backbone.unet.device)  # where a training leaves it, images cannot be made
        yield f"{subject}: scaling", rows + seed_rows(config, backbone)


def _settings(config: BenchmarkConfig) -> dict[str, Any]:
    paths = {"train_config", "work_dir", "docs_dir", "name", "sections"}
    return {key: value for key, value in to_plain_dict(config).items() if key not in paths}


def _machine(config: BenchmarkConfig) -> dict[str, Any]:
    device = pick_device(config.device)
    accelerator = {"accelerator": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "unknown"
    return {**accelerator, **describe_machine(), "load": load}
