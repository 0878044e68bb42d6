"""The report's pictures: labelled grids, each a JPEG small enough for a repository."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ....models.conditioning.prompts import PAPER_PROMPTS, SLOT
from ....utils.files import write_atomically
from ....utils.grid import labelled_grid
from ..pretraining import data
from ..world.concepts import ConceptPhotos
from .rows import Bench, LearnedConcept

MAX_BYTES = 380_000
TILE = 128  # pixels at which an image is shown
SMALL_TILE = 96
PER_ROW = 6


def enlarge(image: Image.Image, tile: int = TILE) -> Image.Image:
    """The image at the size of a tile."""
    return image.resize((tile, tile), Image.Resampling.BICUBIC)


def save_jpeg(image: Image.Image, path: Path) -> None:
    """Write at the best quality that stays under MAX_BYTES."""
    for quality in range(92, 30, -6):
        encoded = io.BytesIO()
        image.save(encoded, format="JPEG", quality=quality, optimize=True)
        if encoded.tell() <= MAX_BYTES:
            break
    write_atomically(path, lambda file: file.write(encoded.getvalue()))


def stack(grids: Sequence[Image.Image]) -> Image.Image:
    """Grids below each other on white."""
    whole = Image.new("RGB", (max(grid.width for grid in grids), sum(grid.height for grid in grids)), "white")
    top = 0
    for grid in grids:
        whole.paste(grid, (0, top))
        top += grid.height
    return whole


def real_beside_generated(bench: Bench, chosen: Sequence[int]) -> Image.Image:
    """For the chosen captions, PER_ROW to a line: the caption, the real render, the generated image."""
    lines = []
    for start in range(0, len(chosen), PER_ROW):
        part = chosen[start : start + PER_ROW]
        tiles = [[enlarge(images[k]) for k in part] for images in (bench.known.renders, bench.generated)]
        lines.append(labelled_grid(tiles, ["real", "generated"], [bench.known.captions[k] for k in part]))
    return stack(lines)


def worst(text_to_image: dict[str, Any], count: int) -> list[int]:
    """The captions whose generated image the judge finds least like the caption, worst first."""
    return np.argsort(text_to_image["generated"]["similarity"])[:count].tolist()


@torch.no_grad()
def reconstructions(bench: Bench, count: int = 8) -> Image.Image:
    """Originals above, what the autoencoder makes of them below."""
    originals = bench.whole.renders[:count]
    pixels = data.to_tensor(np.stack([np.asarray(image) for image in originals]))
    decoded = bench.backbone.vae.decode(bench.backbone.vae.encode(pixels).latent_dist.mean).sample
    made = [Image.fromarray(array) for array in data.to_uint8(decoded)]
    rows = [[enlarge(image) for image in images] for images in (originals, made)]
    return labelled_grid(rows, ["original", "reconstruction"])


def concept_overview(
    bench: Bench, everyone: Sequence[ConceptPhotos], learned: Sequence[LearnedConcept], prompt: str, images: int
) -> Image.Image:
    """Every concept in a row: a photo, generated images of it, and images of the super-category word alone."""
    by_name = {one.photos.name: one for one in learned}
    shown, alone = min(images, 6), min(images, 3)
    rows = []
    for one in everyone:
        blank = [Image.new("RGB", (SMALL_TILE, SMALL_TILE), "#e8e8e8")] * shown
        made = blank
        if learned_one := by_name.get(one.name):
            painted = bench.painter.paint(prompt, range(shown), learned_one.concept, learned_one.file_digest)
            made = [enlarge(image, SMALL_TILE) for image in painted]
        word = bench.painter.paint(prompt.replace(SLOT, one.super_category), range(alone))
        rows.append([enlarge(one.photos()[0], SMALL_TILE), *made, *(enlarge(image, SMALL_TILE) for image in word)])
    columns = ["photo", *["learned"] * shown, *["word alone"] * alone]
    return labelled_grid(rows, [f"{one.name} ({one.super_category})" for one in everyone], columns)


def paper_prompts(bench: Bench, concepts: Sequence[LearnedConcept], images: int = 3) -> Image.Image:
    """The paper's evaluation prompts, `images` seeds for each of the concepts side by side."""
    rows = []
    for prompt in tqdm(PAPER_PROMPTS, desc="paper prompts", disable=None):
        painted = [bench.painter.paint(prompt, range(images), one.concept, one.file_digest) for one in concepts]
        rows.append([enlarge(image, SMALL_TILE) for of_concept in painted for image in of_concept])
    columns = [one.photos.name for one in concepts for _ in range(images)]
    return labelled_grid(rows, PAPER_PROMPTS, columns)
