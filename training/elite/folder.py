"""Training pictures from a folder, with instance masks or boxes (Open Images' layout), read when they are needed."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...models.conditioning.prompts import OBJECT_TEMPLATES
from ...utils.errors import UserError
from ...utils.images import load_image
from ..data.photos import IMAGE_SUFFIXES
from .augment import augment_image, augment_object
from .config import GLOBAL, DataConfig, Stage
from .samples import WORDS, Sample, to_tensor

_ORDER, _DRAW = 0, 1  # separate streams of randomness
BOX_AREA = (0.02, 0.8)  # global stage: the box's share of the picture
PADDING = 10  # pixels around a box
MASK_SIDE = 100  # local stage: least side of a mask's box in pixels
MASK_ASPECT = 2.0  # local stage: no side of it is longer than this many times the other

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the sides


class Item(NamedTuple):
    """One object in one picture, by its mask or its box."""

    image: Path
    mask: Path | None
    box: Box | None


class Unusable(Exception):
    """Why an item cannot be learned from."""


def find_items(config: DataConfig) -> list[Item]:
    """Every object of the folder, sorted. UserError if a folder is missing, or no mask or box belongs to an image."""
    assert config.images is not None
    images = {path.stem: path for path in _files(config.images, "data.images") if path.suffix.lower() in IMAGE_SUFFIXES}
    items = []
    for mask in _files(config.masks, "data.masks") if config.masks else []:
        if (stem := _image_of(mask.stem, images)) is not None:
            items.append(Item(images[stem], mask, None))
    if config.boxes is not None:
        items += [Item(images[name], None, box) for name, box in _boxes(config.boxes) if name in images]
    if not items:
        raise UserError(
            f"data.images {config.images}: none of its {len(images)} images has a mask <name>*.png in data.masks "
            "or a row in data.boxes"
        )
    return items


class FolderSamples:
    """Objects cut out of pictures, in an order that is shuffled anew in every epoch.

    A file that cannot be read, and an object that is too small, too large or too long, is skipped for the next one, and
    counted in `Sample.skipped`.
    """

    def __init__(self, config: DataConfig, stage: Stage, *, seed: int, side: int) -> None:
        self.items = find_items(config)
        self.config, self.stage, self.seed, self.side = config, stage, seed, side

    def __getitem__(self, number: int) -> Sample:
        epoch, position = divmod(number, len(self.items))
        order = _shuffled(self.seed, epoch, len(self.items))
        for skipped in range(len(self.items)):
            item = self.items[int(order[(position + skipped) % len(self.items)])]
            rng = np.random.default_rng((self.seed, _DRAW, number))
            try:
                sample = self._of_words(item, rng) if self.stage is GLOBAL else self._of_patches(item, rng)
                return sample._replace(skipped=skipped)
            except (UserError, Unusable):
                continue
        raise UserError(f"data.images {self.config.images}: none of the {len(self.items)} objects can be used")

    def _of_words(self, item: Item, rng: np.random.Generator) -> Sample:
        """The object in its box, as target and as the encoder's picture."""
        picture = load_image(item.image)
        box = item.box or _box_of(_read_mask(item, picture.size))
        area = (box[2] - box[0]) * (box[3] - box[1])
        if not BOX_AREA[0] <= area <= BOX_AREA[1]:
            raise Unusable("the box is too small or too large")
        crop = picture.crop(_pixels(box, picture.size, PADDING))
        target = to_tensor(crop.resize((self.config.resolution,) * 2, Image.Resampling.BICUBIC))
        image = to_tensor(crop.resize((self.side,) * 2, Image.Resampling.BICUBIC))
        return Sample(
            target=target * 2 - 1,
            valid=torch.ones(1, *target.shape[1:]),
            image=augment_image(image, rng),
            object=image,
            mask=torch.ones(1, *image.shape[1:]),
            text=str(rng.choice(OBJECT_TEMPLATES)),
            words=WORDS,
        )

    def _of_patches(self, item: Item, rng: np.random.Generator) -> Sample:
        """The object in its mask's box; the target shows it smaller, as it is, or nearer, and the text says so."""
        picture = load_image(item.image)
        shape = _read_mask(item, picture.size)
        left, top, right, bottom = _box_of(shape)
        width, height = (right - left) * picture.width, (bottom - top) * picture.height
        if min(width, height) < MASK_SIDE or max(width, height) > MASK_ASPECT * min(width, height):
            raise Unusable("the mask is too small or too long")
        corners = _pixels((left, top, right, bottom), picture.size, int(rng.integers(PADDING, 2 * PADDING)))
        crop = picture.crop(corners)
        image = to_tensor(crop.resize((self.side,) * 2, Image.Resampling.BICUBIC))
        mask = to_tensor(shape.crop(corners).resize((self.side,) * 2, Image.Resampling.NEAREST))
        target, valid, text = _scaled(crop, self.config.resolution, rng)
        thing, moved = augment_object(image * mask, mask, rng)
        return Sample(target * 2 - 1, valid, image, thing, moved, text, words=1)


def _scaled(crop: Image.Image, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, str]:
    """A target in 0..1, where it shows the picture, and its text (Custom Diffusion's scaling)."""
    template = str(rng.choice(OBJECT_TEMPLATES))
    rest = template.split(" ", 1)[1]  # without its article
    valid = torch.ones(1, size, size)
    if rng.random() < 1 / 3:
        larger = int(size * rng.uniform(1.2, 1.4))
        left, top = rng.integers(0, larger - size + 1, 2)
        zoomed = crop.resize((larger, larger), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
        return to_tensor(zoomed), valid, f"{rng.choice(['zoomed in', 'close up'])} {rest}"
    scale = rng.uniform(1 / 3, 1)
    if scale >= 0.6:
        return to_tensor(crop.resize((size, size), Image.Resampling.BICUBIC)), valid, template
    small = int(size * scale)
    left, top = rng.integers(0, size - small + 1, 2)
    around = (int(left), int(size - small - left), int(top), int(size - small - top))
    target = F.pad(to_tensor(crop.resize((small, small), Image.Resampling.BICUBIC)), around)
    return target, F.pad(torch.ones(1, small, small), around), f"{rng.choice(['a far away', 'very small'])} {rest}"


def _read_mask(item: Item, size: tuple[int, int]) -> Image.Image:
    """The item's mask as "L", 0 or 255, as large as its picture."""
    assert item.mask is not None
    mask = load_image(item.mask).convert("L").point(lambda value: 255 * (value > 127))
    if abs(mask.width * size[1] - mask.height * size[0]) > 0.02 * mask.height * size[0]:
        raise Unusable("the mask has another shape than its picture")
    return mask.resize(size, Image.Resampling.NEAREST)  # Open Images stores masks at other sizes


def _box_of(mask: Image.Image) -> Box:
    box = mask.getbbox()
    if box is None:
        raise Unusable("the mask is empty")
    return box[0] / mask.width, box[1] / mask.height, box[2] / mask.width, box[3] / mask.height


def _pixels(box: Box, size: tuple[int, int], padding: int) -> tuple[int, int, int, int]:
    """The box in pixels, padded as far as the picture goes."""
    (left, top, right, bottom), (width, height) = box, size
    return (
        max(0, round(left * width) - padding),
        max(0, round(top * height) - padding),
        min(width, round(right * width) + padding),
        min(height, round(bottom * height) + padding),
    )


def _files(folder: Path, key: str) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{key} {folder} is not a folder; check the path")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _image_of(mask: str, images: dict[str, Path]) -> str | None:
    """The image that a mask belongs to: its name, with or without `_...` behind it."""
    while mask not in images:
        mask, separator, _ = mask.rpartition("_")
        if not separator:
            return None
    return mask


def _boxes(path: Path) -> list[tuple[str, Box]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            return [
                (row["ImageID"], (float(row["XMin"]), float(row["YMin"]), float(row["XMax"]), float(row["YMax"])))
                for row in rows
            ]
    except OSError as error:
        raise UserError(f"data.boxes {path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"data.boxes {path}: not a table of boxes ({error}); columns ImageID, XMin, XMax, YMin, YMax are needed"
        ) from None


@functools.lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(length)
