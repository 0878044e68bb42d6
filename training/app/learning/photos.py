"""Uploaded photos: which are good, which are not and why, and how the training will see them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ....utils.errors import UserError
from ....utils.images import read_image
from ...config.options import MaskSource
from ...config.run import DataConfig
from ...data.dataset import ConceptDataset

PREVIEW = 192  # pixels
OUTSIDE = np.array([236, 64, 122])  # the colour that lies over what a mask leaves out
BROKEN = Image.new("RGB", (PREVIEW, PREVIEW), "#fbe9e7")


class Photos(NamedTuple):
    """What was uploaded. folder: where the good ones are; shown: a square for each, and words; problems: the bad ones,
    a line each."""

    folder: Path
    shown: list[tuple[Image.Image, str]]
    problems: list[str]
    good: int


def receive(uploads: Sequence[Path], folder: Path, masks: str = MaskSource.none) -> Photos:
    """Check every upload as any photo is checked, and copy the good ones to `folder`, which is made.

    UserError if none is good.
    """
    masks = MaskSource(masks)
    folder.mkdir(parents=True)
    shown, problems = [], []
    for upload in uploads:
        try:
            read_image(upload)
        except UserError as error:
            problems.append(_about(upload.name, error, upload.parent))
            shown.append((BROKEN, f"✕ {upload.name}"))
            continue
        shutil.copyfile(upload, folder / upload.name)
    if len(problems) == len(uploads):
        raise UserError(f"none of these is a photo that can be read: {problems[0]}")
    config = DataConfig(folder, "<concept>", resolution=PREVIEW, dataloader_num_workers=0, masks=masks)
    photos, more = _as_trained(config)
    return Photos(folder, photos + shown, problems + more, len(photos))


def _as_trained(config: DataConfig) -> tuple[list[tuple[Image.Image, str]], list[str]]:
    """Every photo as the square that is learned, and what is wrong or worth knowing, a line each."""
    problems: list[str] = []
    try:
        dataset = ConceptDataset(config, seed=0)
        dataset.check_images()
    except UserError as error:
        problems = [_about("", UserError(line), config.train_data_dir) for line in str(error).splitlines()]
        if config.masks is MaskSource.none:
            raise UserError("; ".join(problems)) from None
        dataset = ConceptDataset(
            DataConfig(config.train_data_dir, config.placeholder_token, resolution=PREVIEW), seed=0
        )
        dataset.check_images()
    shown = [(_preview(dataset, number), path.name) for number, path in enumerate(dataset.paths)]
    return shown, problems + dataset.notes


def _preview(dataset: ConceptDataset, number: int) -> Image.Image:
    pixels, mask = dataset.read(number)
    array = ((pixels.permute(1, 2, 0).numpy() + 1) * 127.5).round()
    if mask is not None:
        outside = 0.6 * (1 - mask.permute(1, 2, 0).numpy())
        array = array * (1 - outside) + OUTSIDE * outside
    return Image.fromarray(array.astype(np.uint8))


def _about(name: str, error: UserError, folder: Path) -> str:
    """The error's line with the photo's name alone: where the server keeps uploads helps nobody."""
    line = str(error).replace(f"{folder}/", "").replace(str(folder), "the photos").partition("; ")[0]
    line = line.removeprefix("the image ")
    return line if not name or name in line else f"{name}: {line}"
