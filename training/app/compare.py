"""Several concepts measured on the same prompts and seeds: likeness to their photos against fidelity to the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...utils.config.yaml_text import load_yaml
from ...utils.errors import UserError
from ...utils.hashing import file_hash, json_hash
from ..evaluation.config import MetricsConfig
from ..evaluation.evaluate import Evaluation
from ..evaluation.images import read_generated
from ..evaluation.rows import Kind, truncation_name
from ..evaluation.scores import IMAGE, TEXT
from .config import AppConfig
from .drawing.controls import TRUNCATION
from .drawing.library import Entry
from .drawing.request import Request
from .places import Places
from .services import Services

PROMPTS = ("A photo of a {}", "A photo of {} on a beach", "A painting of {} in the style of Monet")
SEEDS = "0-1"
MOST = 6  # concepts at once


@dataclass(frozen=True)
class Point:
    """One concept at one truncation. image, text: similarity to the photos and to the prompt; shown: with their
    intervals; pictures: what was measured, with captions."""

    concept: str
    units: str
    image: float
    text: float
    shown: tuple[str, str]
    pictures: list[tuple[str, str]]


@dataclass(frozen=True)
class Comparison:
    """How far it is, in words and as a share 0..1; points: once all is measured."""

    share: float
    words: str
    points: list[Point] | None = None


def compare(names: Sequence[str], session: str, services: Services) -> Iterator[Comparison]:
    """Draw what is not drawn yet, then measure; cancelled with the session's drawing.

    UserError for concepts whose photos are not known.
    """
    if not names or len(names) > MOST:
        raise UserError(f"choose one to {MOST} concepts")
    entries = [services.library[name] for name in names]
    photos = [_photos(entry) for entry in entries]
    folders = []
    for number, entry in enumerate(entries):
        request, folder = _request(entry, services)
        folders.append(folder)
        made = None
        for made in services.drawer.pictures(session, request, folder):
            share = (number + made.done / made.total) / (len(entries) + 1)
            yield Comparison(share, f"{entry.name}: {made.words}")
        if made is None or made.done < made.total:
            return  # cancelled
    yield Comparison(len(entries) / (len(entries) + 1), "measuring")
    points = _measured(entries, photos, folders, services.config, services.places)
    yield Comparison(1.0, f"{len(points)} points; choose one to see its pictures", points)


def _request(entry: Entry, services: Services) -> tuple[Request, Path]:
    """What is drawn of a concept, and where, which the concept's content and the request decide."""
    app = services.config
    request = Request(
        PROMPTS[0],
        entry.name,
        seeds=SEEDS,
        compare=TRUNCATION if services.drawer.controls(entry.name).units else None,
        steps=app.num_denoising_steps,
        guidance_scale=app.guidance_scale,
        beside=PROMPTS[1:],
    )
    key = json_hash([file_hash(*entry.files.paths), repr(request), app.torch_dtype.value])
    return request, services.places.compare / f"{entry.name}-{key}"


def _measured(
    entries: Sequence[Entry], photos: Sequence[Path], folders: Sequence[Path], app: AppConfig, places: Places
) -> list[Point]:
    words = [entry.load().super_category or "object" for entry in entries]
    found = list(zip(entries, words, photos, folders, strict=True))
    config = MetricsConfig(
        concepts=tuple(f"{entry.name} | {word} | {photo}" for entry, word, photo, _ in found),
        runs=tuple(f"{entry.name} | {entry.name} | {folder}" for entry, _, _, folder in found),
        judge=app.judge,
        output_dir=places.fresh(places.compare, "numbers"),
        cache_dir=places.compare / "features",
        device=app.device,
    )
    config.validate()
    points = []
    images = {entry.name: read_generated([folder]).images for entry, _, _, folder in found}
    for row in Evaluation(config).report().rows:
        if row.kind is not Kind.run or row.prompt is not None or row.concept is None:
            continue
        own = [image for image in images[row.concept] if image.truncation == row.truncation]
        pictures = [(str(image.path), f"{image.prompt} · seed {image.seed}") for image in own]
        image, text = row.estimates[IMAGE], row.estimates[TEXT]
        kept = truncation_name(row.truncation)
        points.append(Point(row.concept, kept, image.mean, text.mean, (image.shown(), text.shown()), pictures))
    return points


def _photos(entry: Entry) -> Path:
    """Where the concept's photos are, as its run's configuration says."""
    try:
        return Path(load_yaml(entry.files.concept.parent / "config.yaml")["data"]["train_data_dir"])
    except (UserError, LookupError, TypeError):
        raise UserError(f"{entry.name}: the photos it was learned from are not known here") from None
