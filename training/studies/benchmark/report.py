"""The whole benchmark: measure the chosen sections; after each, keep the results as JSON and write the page."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ....models.generation.config import Dtype
from ....utils.config.parsing import parse_config, to_plain_dict
from ....utils.devices import describe_machine, pick_device
from ....utils.errors import UserError
from ....utils.files import require_writable, write_json
from ...config.run import RunConfig
from ..page import measured_part, replace_chapter
from ..timing import Row
from .arithmetic import arithmetic_rows, family_rows
from .commands import Commands, numerics_rows, process_rows, startup_rows
from .config import BenchmarkConfig, Section, Subject
from .images import sampling_rows, seed_rows, serving_rows
from .memory import memory_rows
from .perfusion import perfusion_rows
from .training import Trainers, batch_rows, make_backbone, training_rows, variant_rows

# All others need a model in memory
ALONE = {Section.arithmetic, Section.memory, Section.startup, Section.numerics}
# Of the call, not of what is measured
OWN_KEYS = ("train_config", "work_dir", "docs_dir", "name", "sections")


def write_benchmark(config: BenchmarkConfig, scripts: Path) -> Iterator[tuple[str, list[Row]]]:
    """Measure; yield each table (title, rows) once it is in work_dir/NAME.json and on the page.

    scripts: the folder of train.py. Raises UserError, before anything is measured, for what cannot be.
    """
    page = config.docs_dir / "performance.md"
    _check(config, page)
    record: dict[str, Any] = {
        "settings": {key: value for key, value in to_plain_dict(config).items() if key not in OWN_KEYS},
        "machine": _machine(config),  # with the load that others put on it, before ours
        "tables": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for title, rows in _measure(config, Commands(config, scripts, Path(folder) / "runs"), Path(folder)):
            record["tables"][title] = [asdict(row) for row in rows]
            write_json(record, config.work_dir / f"{config.name}.json")
            replace_chapter(page, config.name, render_chapter(record))
            yield title, rows


def _check(config: BenchmarkConfig, page: Path) -> None:
    device = pick_device(config.device)
    measured_part(page)
    require_writable(config.work_dir, "work_dir")
    require_writable(config.docs_dir, "docs_dir")
    if config.dtype is Dtype.fp16 and device.type == "cpu":
        raise UserError("dtype = fp16 needs a GPU, and the device is the CPU; write bf16 or fp32")
    if not config.train_config.is_file():
        raise UserError(f"train_config = {config.train_config}: no such file; start in the project's folder")
    parse_config(RunConfig, ["--config_path", str(config.train_config)])


def _measure(config: BenchmarkConfig, commands: Commands, folder: Path) -> Iterator[tuple[str, list[Row]]]:
    if Section.arithmetic in config.sections:
        yield "sd14: arithmetic", arithmetic_rows(config)
    if Section.families in config.sections:
        yield "families: a training step of 1", family_rows(config)
    for subject in config.models:
        if set(config.sections) - ALONE:
            yield from _of_model(config, subject, folder / str(subject))
            gc.collect()  # trainers hold the model in circles of references
            torch.cuda.empty_cache()
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
    backbone = make_backbone(config, subject)
    trainers = Trainers(backbone, folder)
    if Section.training in config.sections:
        yield f"{subject}: training", training_rows(config, subject, trainers)
    if Section.variants in config.sections:
        yield f"{subject}: what may make a step faster", variant_rows(config, subject, trainers)
    if Section.scaling in config.sections:
        yield f"{subject}: batch sizes", batch_rows(config, trainers)
    backbone.vae.to(backbone.unet.device)  # where a training leaves it, images cannot be made
    if Section.sampling in config.sections:
        yield f"{subject}: images", sampling_rows(config, subject, backbone)
    if Section.perfusion in config.sections:
        yield f"{subject}: Perfusion", perfusion_rows(config, subject, backbone, folder)
    if Section.serving in config.sections:
        yield f"{subject}: serving", serving_rows(config, backbone)
    if Section.scaling in config.sections:
        yield f"{subject}: numbers of seeds", seed_rows(config, backbone)


def _machine(config: BenchmarkConfig) -> dict[str, Any]:
    device = pick_device(config.device)
    accelerator = {"accelerator": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "unknown"
    return {**accelerator, **describe_machine(), "load": load}


def render_chapter(record: Mapping[str, Any]) -> str:
    """What was measured on one machine with one setting, as the JSON file has it, without its heading."""
    machine = record["machine"]
    place = machine.get("accelerator") or machine["processor"]
    about = {
        "Machine": f"{place}, {machine['cores']} cores, PyTorch with {machine['threads']} threads, "
        f"{machine['system']}; load average before the start: {machine['load']}",
        "Versions": _listed(machine, {"accelerator", "processor", "cores", "threads", "system", "load"}),
        "Settings": _listed(record["settings"], set()),
    }
    lines = [f"{title}: {text}.  " for title, text in about.items()]
    for title, rows in record["tables"].items():
        lines += ["", f"#### {title}", "", "| what | measured | counted | wanted | |", "|---|---|---|---|---|"]
        lines += [
            "| " + " | ".join(row[key] for key in ("what", "value", "counted", "wanted", "note")) + " |" for row in rows
        ]
    return "\n".join(lines)


def _listed(values: Mapping[str, Any], without: set[str]) -> str:
    shown = {key: value for key, value in values.items() if key not in without and value is not None}
    return ", ".join(
        f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in shown.items()
    )
