"""Measure what mixing does on a miniature; write the numbers, the pages' measured parts and the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ....utils.devices import describe_machine
from ....utils.files import write_json
from ....utils.grid import labelled_grid
from ..page import enlarge, measured_part, replace_measured_part, save_jpeg
from ..study import Study, steps_of
from .config import MixingConfig, pair_of
from .measurements import Measurements
from .page import several_section, style_section

TILE = 96  # pixels at which an image is shown


def write_mixing(config: MixingConfig) -> list[Path]:
    """Measure what is not measured yet and write it; returns the files that were written.

    Raises UserError, before anything is measured, for whatever is missing: font, models, concepts, how to learn those
    that have no file, and a page without a place for the numbers.
    """
    style, several = config.docs_dir / "style_mixing.md", config.docs_dir / "several_concepts.md"
    for page in [style] * bool(config.style_pairs) + [several] * bool(config.both_pairs):
        measured_part(page)
    study = Study(config)
    study.check(config.names)
    learned = {name: study.learned(name) for name in config.names}
    perfusion = {}
    if config.perfusion_config is not None:
        both = {name for pair in config.both_pairs for name in pair_of(pair)}
        perfusion = {name: study.learned(name, config.perfusion_config) for name in config.names if name in both}
    measured = Measurements(study, config, learned, perfusion)
    machine = describe_machine()
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "diffusers", "transformers"))
    settings = {**study.settings(), "concepts of NeTI step": steps_of(learned.values())}
    settings |= {"of Perfusion": steps_of(perfusion.values())} if perfusion else {}
    line = (
        f"Settings: {'; '.join(f'{name} {value}' for name, value in settings.items())}. On: {machine['processor']}, "
        f"{machine['system']}. Versions: {versions}."
    )
    record: dict[str, Any] = {"settings": line, "machine": machine}
    written = [config.work_dir / "mixing.json"]
    if config.style_pairs:
        record["style_mixing"] = measured.style_mixing()
        replace_measured_part(style, style_section(record["style_mixing"], config, line))
        save_jpeg(_style_picture(measured), config.docs_dir / "images" / "style_mixing.jpg")
        written.append(style)
    if config.both_pairs:
        record["several_concepts"] = measured.several_concepts()
        kinds = {name: one.photos.super_category for name, one in measured.learned.items()}
        replace_measured_part(several, several_section(record["several_concepts"], kinds, config, line))
        save_jpeg(_several_picture(measured), config.docs_dir / "images" / "several_concepts.jpg")
        written.append(several)
    write_json(record, written[0])
    return written


def _style_picture(measured: Measurements) -> Image.Image:
    config, starts = measured.config, sorted(measured.config.mixing_start)
    rows = []
    for pair in config.style_pairs:
        own = [measured.own_images(name, config.style_seeds)[0] for name in pair_of(pair)]
        photos = [measured.learned[name].photos.photos()[0] for name in pair_of(pair)]
        mixed = [measured.style_images(pair, start)[0] for start in starts]
        rows.append([photos[0], own[0], *mixed, own[1], photos[1]])
    columns = ["geometry photo", "geometry alone", *(f"from {start}" for start in starts)]
    return _grid(rows, config.style_pairs, [*columns, "appearance alone", "appearance photo"])


def _several_picture(measured: Measurements) -> Image.Image:
    config, ways = measured.config, measured.ways()
    shown = {way: min(2 if len(way.seeds) == len(config.both_seeds) else 1, len(way.seeds)) for way in ways}
    rows = []
    for pair in config.both_pairs:
        photos = [measured.learned[name].photos.photos()[0] for name in pair_of(pair)]
        rows.append(photos + [image for way in ways for image in measured.several_images(pair, way)[: shown[way]]])
    columns = ["photo", "photo", *(way.title for way in ways for _ in range(shown[way]))]
    return _grid(rows, config.both_pairs, columns)


def _grid(rows: list[list[Image.Image]], labels: tuple[str, ...], columns: list[str]) -> Image.Image:
    return labelled_grid([[enlarge(image, TILE) for image in row] for row in rows], labels, columns)
