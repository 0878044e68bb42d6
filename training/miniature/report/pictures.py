"""The report's pictures: labelled grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ....models.conditioning.prompts import PAPER_PROMPTS, SLOT
from ....utils.grid import labelled_grid
from ...studies.page import enlarge
from ...studies.study import LearnedConcept, Study
from ..pretraining import data
from .measurements import Measurements

TILE = 128  # pixels at which an image is shown
SMALL_TILE = 96
PER_ROW = 6


def real_beside_generated(measured: Measurements, chosen: Sequence[int]) -> Image.Image:
    """For the chosen captions, PER_ROW to a line: the caption, the real render, the generated image."""
    lines = []
    for start in range(0, len(chosen), PER_ROW):
        part = chosen[start : start + PER_ROW]
        tiles = [[enlarge(images[k], TILE) for k in part] for images in (measured.known.renders, measured.generated)]
        lines.append(labelled_grid(tiles, ["real", "generated"], [measured.known.captions[k] for k in part]))
    whole = Image.new("RGB", (max(line.width for line in lines), sum(line.height for line in lines)), "white")
    for number, line in enumerate(lines):
        whole.paste(line, (0, sum(above.height for above in lines[:number])))
    return whole


def worst(text_to_image: dict[str, Any], count: int) -> list[int]:
    """The captions whose generated image the metric model finds least like the caption, worst first."""
    return np.argsort(text_to_image["generated"]["similarity"])[:count].tolist()


@torch.no_grad()
def reconstructions(measured: Measurements, count: int = 8) -> Image.Image:
    """Originals above, what the autoencoder makes of them below."""
    originals, vae = measured.whole.renders[:count], measured.study.backbone.vae
    pixels = data.to_tensor(np.stack([np.asarray(image) for image in originals]))
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    made = [Image.fromarray(array) for array in data.to_uint8(decoded)]
    rows = [[enlarge(image, TILE) for image in images] for images in (originals, made)]
    return labelled_grid(rows, ["original", "reconstruction"])


def concept_overview(study: Study, learned: Sequence[LearnedConcept], prompt: str, images: int) -> Image.Image:
    """Every concept in a row: a photo, generated images of it, and images of the super-category word alone."""
    by_name = {one.photos.name: one for one in learned}
    shown, alone = min(images, 6), min(images, 3)
    rows = []
    for one in study.photos.values():
        made = [Image.new("RGB", (SMALL_TILE, SMALL_TILE), "#e8e8e8")] * shown
        if one.name in by_name:
            made = study.draw_concept(by_name[one.name], prompt, range(shown))
        word = study.draw_words(prompt.replace(SLOT, one.super_category), range(alone))
        rows.append([enlarge(image, SMALL_TILE) for image in (one.photos()[0], *made, *word)])
    columns = ["photo", *["learned"] * shown, *["word alone"] * alone]
    return labelled_grid(rows, [f"{one.name} ({one.super_category})" for one in study.photos.values()], columns)


def paper_prompts(study: Study, concepts: Sequence[LearnedConcept], images: int = 3) -> Image.Image:
    """The paper's evaluation prompts, `images` seeds for each of the concepts side by side."""
    rows = [
        [enlarge(image, SMALL_TILE) for one in concepts for image in study.draw_concept(one, prompt, range(images))]
        for prompt in tqdm(PAPER_PROMPTS, "paper prompts", disable=None)
    ]
    return labelled_grid(rows, PAPER_PROMPTS, [one.photos.name for one in concepts for _ in range(images)])
