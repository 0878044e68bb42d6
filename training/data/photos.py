"""The concept's images and texts, and which of them each training sample shows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ...models.conditioning.prompts import OBJECT_TEMPLATES, SHORT_TEMPLATES, SLOT, STYLE_TEMPLATES
from ...utils.errors import UserError
from ...utils.images import load_image, to_square
from ..config.options import LearnableProperty, Templates
from ..config.run import DataConfig

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
FOREIGN_SUFFIXES = {".heic", ".heif", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"}
FLIP_PROBABILITY = 0.5
_ORDER, _DRAW = 0, 1  # separate streams of randomness for the order of the images and for what a sample draws


class Sample(NamedTuple):
    """One training sample: which image, mirrored or not, and its text with `{}` for the concept."""

    image_id: int
    flipped: bool
    text: str


def find_images(folder: Path) -> tuple[list[Path], list[str]]:
    """The images in a folder in the order of their names, and a note on each other thing that was skipped.

    Raises UserError if the folder is missing or holds no image, and for photo formats that Pillow cannot read: they
    were put there to be learned from.
    """
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise UserError(f"the image folder {folder} does not exist; check data.train_data_dir") from None
    except NotADirectoryError:
        raise UserError(f"{folder} is a file; data.train_data_dir must be the folder that holds the images") from None
    except OSError as error:
        raise UserError(f"the image folder {folder} cannot be read: {error.strerror}") from None
    paths = [entry for entry in entries if _is_image(entry)]
    if foreign := [entry.name for entry in entries if _is_visible_file(entry) and _suffix(entry) in FOREIGN_SUFFIXES]:
        raise UserError(f"{folder}: {', '.join(foreign)} cannot be read here; convert to JPEG or PNG")
    if not paths:
        found = f"only {', '.join(entry.name for entry in entries[:5])}" if entries else "it is empty"
        raise UserError(
            f"the image folder {folder} holds no image ({found}); put three to five images of the concept there"
        )
    captions = {path.with_suffix(".txt") for path in paths}
    notes = [
        f"skipped {entry.name}: {'a folder' if entry.is_dir() else 'not an image'}"
        for entry in entries
        if entry not in paths and entry not in captions
    ]
    return paths, notes


class ConceptDataset:
    """Images of one concept. What sample number i shows is a pure function of (seed, i).

    So a run resumes exactly at any position, and several processes that share the numbers of a batch out among them
    see together what one process would see. Numbers count samples, not batches, from 0 and without end.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.paths, self.notes = find_images(config.train_data_dir)
        self.captions = [_read_caption(path.with_suffix(".txt")) for path in self.paths]
        is_style = config.learnable_property is LearnableProperty.style
        self.templates: tuple[str, ...] = STYLE_TEMPLATES if is_style else OBJECT_TEMPLATES
        if config.templates is Templates.short:
            self.templates = SHORT_TEMPLATES

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    @property
    def epoch_length(self) -> int:
        """Samples per epoch; within one, every image is shown `repeats` times in shuffled order."""
        return len(self.paths) * self.config.repeats

    @property
    def texts(self) -> list[str]:
        """Every text that a sample may carry, once each, with `{}` for the concept."""
        texts = [caption for caption in self.captions if caption is not None]
        if len(texts) < len(self.captions):
            texts += self.templates
        return list(dict.fromkeys(texts))

    def sample(self, index: int) -> Sample:
        """Sample number `index`: an image, a fair coin for mirroring, and the image's caption or a random template."""
        epoch, position = divmod(index, self.epoch_length)
        order = _shuffled(self.seed, epoch, self.epoch_length)
        image_id = int(order[position]) % len(self.paths)
        draw = np.random.default_rng((self.seed, _DRAW, index))
        flipped = bool(draw.random() < FLIP_PROBABILITY)
        template = self.templates[int(draw.integers(len(self.templates)))]
        text = self.captions[image_id] or template
        return Sample(image_id, flipped, text)

    def pixels(self, image_ids: Sequence[int]) -> Tensor:
        """The square images [B,3,S,S], not mirrored, in -1..1. UserError lists every image that cannot be read."""
        return torch.stack([_to_tensor(image) for image in self._read(image_ids)])

    def check_images(self, chunk: int = 16) -> None:
        """Open every image; one UserError names all that cannot be read, a line each."""
        problems = []
        for start in range(0, len(self), chunk):
            try:
                self._read(range(start, min(start + chunk, len(self))))
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(problems))

    def _read(self, image_ids: Sequence[int]) -> list[Image.Image]:
        paths = [self.paths[image_id] for image_id in image_ids]
        if self.config.dataloader_num_workers == 0:
            results = [self._read_one(path) for path in paths]
        else:
            with ThreadPoolExecutor(self.config.dataloader_num_workers) as pool:
                results = list(pool.map(self._read_one, paths))
        if problems := [str(result) for result in results if isinstance(result, UserError)]:
            raise UserError("\n".join(problems))
        return [result for result in results if isinstance(result, Image.Image)]

    def _read_one(self, path: Path) -> Image.Image | UserError:
        try:
            return to_square(load_image(path), self.config.resolution, self.config.effective_square_mode)
        except UserError as error:
            return error


def _is_visible_file(entry: Path) -> bool:
    # hidden files include macOS's ._photo.jpg, which carries a photo's name and holds none
    return not entry.name.startswith(".") and entry.is_file()


def _suffix(entry: Path) -> str:
    return entry.suffix.lower()


def _is_image(entry: Path) -> bool:
    if not _is_visible_file(entry) or _suffix(entry) in FOREIGN_SUFFIXES:  # raw photos may pass for TIFF
        return False
    if _suffix(entry) in IMAGE_SUFFIXES:
        return True
    try:
        with Image.open(entry, formats=("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")):
            return True  # an image under another name, as downloads often are
    except (UnidentifiedImageError, OSError):
        return False


def _read_caption(path: Path) -> str | None:
    """The caption beside an image, on one line; None if there is none. UserError if it has no `{}` for the concept."""
    if not path.is_file():
        return None
    try:
        caption = " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise UserError(f"the caption {path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"the caption {path} cannot be read: {error.strerror}") from None
    if SLOT not in caption:
        raise UserError(f"the caption {path} ({caption!r}) has no {SLOT}; write {SLOT} where the concept belongs")
    return caption


@functools.lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(length)


def _to_tensor(image: Image.Image) -> Tensor:
    """RGB image to [3,H,W] in -1..1."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1)
