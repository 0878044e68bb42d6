"""Measure what mixing does on a miniature; write the numbers, the pages' measured parts and the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ....models.backbone.loading import BUNDLED
from ....utils.devices import describe_machine
from ....utils.files import write_json
from ....utils.grid import labelled_grid
from ...miniature.report.pictures import SMALL_TILE, enlarge, save_jpeg
from .config import MixingConfig, pair_of
from .lab import MixingLab
from .mixing import several_concepts, several_images, style_images, style_mixing, ways
from .page import replace_section, settings_line, several_section, style_section


def write_mixing(config: MixingConfig, train_script: Path) -> list[Path]:
    """Measure what is not measured yet and write it; returns the files that were written.

    train_script: scripts/train.py, with which missing concepts are learned. Raises UserError as `MixingLab.open` does,
    and for a page without a place for the numbers.
    """
    lab = MixingLab.open(config, train_script)
    machine = describe_machine()
    names = {"model": _shown(config.sd, lab.model), "judge": _shown(config.judge, lab.judge_model)}
    steps = [one.concept.metadata.get("step", "?") for one in lab.learned.values()]
    settings = settings_line(config, names, machine, steps)
    record: dict[str, Any] = {"settings": settings, "machine": machine}
    written = []
    if config.style_pairs:
        record["style_mixing"] = style_mixing(lab)
        replace_section(config.docs_dir / "style_mixing.md", style_section(record["style_mixing"], config, settings))
        save_jpeg(_style_picture(lab), config.docs_dir / "images" / "style_mixing.jpg")
        written.append(config.docs_dir / "style_mixing.md")
    if config.both_pairs:
        record["several_concepts"] = several_concepts(lab)
        kinds = {name: one.photos.super_category for name, one in lab.learned.items()}
        section = several_section(record["several_concepts"], kinds, config, settings)
        replace_section(config.docs_dir / "several_concepts.md", section)
        save_jpeg(_several_picture(lab), config.docs_dir / "images" / "several_concepts.jpg")
        written.append(config.docs_dir / "several_concepts.md")
    write_json(record, config.work_dir / "mixing.json")
    return [config.work_dir / "mixing.json", *written]


def _style_picture(lab: MixingLab) -> Image.Image:
    config = lab.config
    starts = sorted(config.mixing_start)
    rows = []
    for pair in config.style_pairs:
        geometry, appearance = pair_of(pair)
        own = [lab.paint_alone(name, config.style_prompt, config.style_seeds)[0] for name in (geometry, appearance)]
        photos = [lab.learned[name].photos.photos()[0] for name in (geometry, appearance)]
        mixed = [style_images(lab, pair, start)[0] for start in starts]
        rows.append([photos[0], own[0], *mixed, own[1], photos[1]])
    columns = ["geometry photo", "geometry alone", *(f"from {start}" for start in starts)]
    columns += ["appearance alone", "appearance photo"]
    return labelled_grid(_tiles(rows), config.style_pairs, columns)


def _several_picture(lab: MixingLab) -> Image.Image:
    rows = []
    columns = ["photo", "photo"]
    shown = [(way, len(way.seeds) == len(lab.config.both_seeds)) for way in ways(lab)]
    for way, whole in shown:
        columns += [way.title] * min(2 if whole else 1, len(way.seeds))
    for pair in lab.config.both_pairs:
        row = [lab.learned[name].photos.photos()[0] for name in pair_of(pair)]
        for way, whole in shown:
            row += several_images(lab, pair, way)[: 2 if whole else 1]
        rows.append(row)
    return labelled_grid(_tiles(rows), lab.config.both_pairs, columns)


def _tiles(rows: list[list[Image.Image]]) -> list[list[Image.Image]]:
    return [[enlarge(image, SMALL_TILE) for image in row] for row in rows]


def _shown(name_or_path: str, digest: str) -> str:
    """A model's name as a page may print it: not where it lies on this machine."""
    return f"`{name_or_path if name_or_path in BUNDLED else Path(name_or_path).name}` (digest {digest})"
