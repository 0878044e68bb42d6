"""The concept's photos, masks and texts, and which of them each training sample shows."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...models.conditioning.prompts import OBJECT_TEMPLATES, SHORT_TEMPLATES, STYLE_TEMPLATES
from ...utils.errors import UserError
from ...utils.images import SquareMode, read_image, to_square
from ..config.options import LearnableProperty, MaskSource, Templates
from ..config.run import DataConfig
from .captions import read_captions
from .masks import find_masks, read_mask, transparency_mask
from .photos import find_images

EXTREME_RATIO = 2.0  # of a photo's sides, from which on a note says what becomes of it
MAX_NAMED = 5  # files that one note names
_ORDER, _DRAW = 0, 1  # separate streams of randomness for the order of the images and for what a sample draws


class Sample(NamedTuple):
    """One training sample: which image, mirrored or not, and its text with `{}` for the concept."""

    image_id: int
    flipped: bool
    text: str


class _Photo(NamedTuple):
    """A photo as a square, its mask (mode L) likewise, and remarks on its file."""

    image: Image.Image
    mask: Image.Image | None
    remarks: list[str]


class ConceptDataset:
    """Images of one concept. What sample number i shows is a pure function of (seed, i).

    So a run resumes exactly at any position, and several processes that share the numbers of a batch out among them
    see together what one process would see. Numbers count samples, not batches, from 0 and without end.

    notes: what of the folder is not used, and, once `check_images` has run, what of the files is not.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.paths, others = find_images(config.train_data_dir)
        self.captions, caption_files, caption_notes = read_captions(self.paths, config)
        self.mask_paths = find_masks(self.paths, config)
        used = {*caption_files, *self.mask_paths, config.masks_dir}
        skipped = [(path.name, words) for path, words in others.items() if path not in used]
        self.notes = [f"skipped {note}" for note in _by_words(skipped)] + caption_notes
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
        """Sample number `index`: an image, a toss for mirroring, and the image's caption or a random template."""
        epoch, position = divmod(index, self.epoch_length)
        order = _shuffled(self.seed, epoch, self.epoch_length)
        image_id = int(order[position]) % len(self.paths)
        draw = np.random.default_rng((self.seed, _DRAW, index))
        flipped = bool(draw.random() < self.config.flip_probability)
        template = self.templates[int(draw.integers(len(self.templates)))]
        text = self.captions[image_id] or template
        return Sample(image_id, flipped, text)

    def read(self, image_ids: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The square images [B,3,S,S] in -1..1 and their masks [B,1,S,S] in 0..1 (None without), not mirrored.

        UserError lists every image that cannot be read.
        """
        photos = self._read(image_ids)
        images = torch.stack([_to_tensor(photo.image) / 127.5 - 1.0 for photo in photos])
        masks = [_to_tensor(photo.mask) / 255 for photo in photos if photo.mask is not None]
        return images, torch.stack(masks) if masks else None

    def check_images(self, chunk: int = 16) -> None:
        """Open every image and mask; one UserError names all that cannot be used, a line each."""
        problems = []
        remarks: list[tuple[str, str]] = []
        for start in range(0, len(self), chunk):
            image_ids = range(start, min(start + chunk, len(self)))
            try:
                for image_id, photo in zip(image_ids, self._read(image_ids), strict=True):
                    remarks += [(self.paths[image_id].name, remark) for remark in photo.remarks]
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(problems))
        self.notes += _by_words(remarks)

    def fingerprint(self) -> str:
        """A hash of what is learned from, wherever the folder lies: the bytes of images and masks, and the captions."""
        digest = hashlib.sha256()
        try:
            for path, caption in zip(self.paths, self.captions, strict=True):
                digest.update(hashlib.sha256(path.read_bytes()).digest())
                digest.update(repr(caption).encode())
            for path in self.mask_paths:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise UserError(f"the image {error.filename} cannot be read: {error.strerror}") from None
        return digest.hexdigest()[:16]

    def _read(self, image_ids: Sequence[int]) -> list[_Photo]:
        if self.config.dataloader_num_workers == 0:
            results = [self._read_one(image_id) for image_id in image_ids]
        else:
            with ThreadPoolExecutor(self.config.dataloader_num_workers) as pool:
                results = list(pool.map(self._read_one, image_ids))
        if problems := [str(result) for result in results if isinstance(result, UserError)]:
            raise UserError("\n".join(problems))
        return [result for result in results if isinstance(result, _Photo)]

    def _read_one(self, image_id: int) -> _Photo | UserError:
        path, size, mode = self.paths[image_id], self.config.resolution, self.config.effective_square_mode
        try:
            image, remarks = read_image(path)
            mask = None
            if self.config.masks is MaskSource.folder:
                mask = read_mask(self.mask_paths[image_id], path, image.size)
            elif self.config.masks is MaskSource.alpha:
                mask = transparency_mask(path)
            if mask is not None:
                mask = to_square(mask, size, mode, padding=0)
                if mask.getextrema()[1] == 0:
                    raise UserError(f"the mask of {path} is empty: it is 0 everywhere; make it anew, or take both out")
            return _Photo(to_square(image, size, mode), mask, [*remarks, *_shape_remarks(image.size, mode)])
        except UserError as error:
            return error


def _shape_remarks(size: tuple[int, int], mode: SquareMode) -> list[str]:
    ratio = max(size) / min(size)
    if ratio < EXTREME_RATIO:
        return []
    becomes = {
        SquareMode.stretch: "stretch squashes it to a square; crop or pad would not",
        SquareMode.crop: f"crop keeps the middle {1 / ratio:.0%} of it",
        SquareMode.pad: f"pad leaves {1 - 1 / ratio:.0%} of the square white",
    }
    return [f"its sides are {ratio:.1f} : 1, and data.square_mode = {becomes[mode]}"]


def _by_words(facts: list[tuple[str, str]]) -> list[str]:
    """Facts (file name, words) as notes, the files of which the same is to be noted in one."""
    names: dict[str, list[str]] = {}
    for name, words in facts:
        names.setdefault(words, []).append(name)
    return [
        f"{', '.join(files[:MAX_NAMED])}{f' and {len(files) - MAX_NAMED} more' * (len(files) > MAX_NAMED)}: {words}"
        for words, files in names.items()
    ]


@functools.lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(length)


def _to_tensor(image: Image.Image) -> Tensor:
    """RGB or L image to [3,H,W] or [1,H,W], 0..255 in float32."""
    values = torch.from_numpy(np.array(image, dtype=np.float32))
    return values.permute(2, 0, 1) if values.dim() == 3 else values[None]
