"""The concept's photos, masks and texts, and which of them each training sample shows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...models.conditioning.prompts import OBJECT_TEMPLATES, SHORT_TEMPLATES, STYLE_TEMPLATES
from ...utils.errors import UserError
from ...utils.hashing import file_hash, sha256
from ...utils.images import MAX_RATIO, SquareMode, read_image, to_square
from ..config.options import LearnableProperty, MaskSource, Templates
from ..config.run import DataConfig
from .captions import read_captions
from .masks import find_masks, read_mask, transparency_mask, unused_masks
from .order import image_of
from .photos import find_images

EXTREME_RATIO = 2.0  # of a photo's sides, from which on a note says what becomes of it
MAX_NAMED = 5  # files that one note names
_DRAW = 1  # the stream of randomness for what a sample draws; `order` has others


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
        skipped += [
            (f"{path.parent.name}/{path.name}", "a mask of no photo") for path in unused_masks(self.mask_paths, config)
        ]
        self.notes = [f"skipped {note}" for note in _by_words(skipped)] + caption_notes
        is_style = config.learnable_property is LearnableProperty.style
        self.templates: tuple[str, ...] = STYLE_TEMPLATES if is_style else OBJECT_TEMPLATES
        if config.templates is Templates.short:
            self.templates = SHORT_TEMPLATES

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    @property
    def texts(self) -> list[str]:
        """Every text that a sample may carry, once each, with `{}` for the concept."""
        texts = [caption for caption in self.captions if caption is not None]
        if len(texts) < len(self.captions):
            texts += self.templates
        return list(dict.fromkeys(texts))

    def sample(self, index: int, buckets: Sequence[int] | None = None, group: int = 1) -> Sample:
        """Sample number `index`: an image, a toss for mirroring, and the image's caption or a random template.

        buckets, group: which images fit into one batch, and samples per step, see `order.image_of`; None: all fit.
        """
        image_id = image_of(index, self.seed, self.config.repeats, buckets or [0] * len(self), group)
        draw = np.random.default_rng((self.seed, _DRAW, index))
        flipped = bool(draw.random() < self.config.flip_probability)
        template = self.templates[int(draw.integers(len(self.templates)))]
        text = self.captions[image_id] or template
        return Sample(image_id, flipped, text)

    def read(self, image_id: int) -> tuple[Tensor, Tensor | None]:
        """An image [3,H,W] in -1..1 and its mask [1,H,W] in 0..1 (None without), not mirrored, at the training's size.

        UserError if it cannot be read.
        """
        photo = self._photo(image_id)
        return _to_tensor(photo.image) / 127.5 - 1.0, None if photo.mask is None else _to_tensor(photo.mask) / 255

    def check_images(self) -> None:
        """Open every image and mask; one UserError names all that cannot be used, a line each."""
        with ThreadPoolExecutor(max(self.config.dataloader_num_workers, 1)) as pool:
            results = list(pool.map(self._check, range(len(self))))
        remarks = []
        problems = []
        for path, result in zip(self.paths, results, strict=True):
            if isinstance(result, UserError):
                problems.append(str(result))
            else:
                remarks += [(path.name, remark) for remark in result]
        if problems:
            raise UserError("\n".join(problems))
        self.notes += _by_words(remarks)

    def fingerprint(self) -> str:
        """A hash of what is learned from, wherever the folder lies: the bytes of images and masks, and the captions."""
        try:
            images, masks = ([_content(path) for path in paths] for paths in (self.paths, self.mask_paths))
        except OSError as error:
            raise UserError(f"the image {error.filename} cannot be read: {error.strerror}") from None
        pairs = zip(images, self.captions, strict=True)
        return sha256([*(part for image, text in pairs for part in (image, repr(text).encode())), *masks])[:16]

    def _check(self, image_id: int) -> list[str] | UserError:
        try:
            return self._photo(image_id).remarks
        except UserError as error:
            return error

    def _photo(self, image_id: int) -> _Photo:
        path, size, mode = self.paths[image_id], self.config.resolution, self.config.effective_square_mode
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


def _shape_remarks(size: tuple[int, int], mode: SquareMode) -> list[str]:
    ratio = max(size) / min(size)
    if ratio < EXTREME_RATIO or (mode is SquareMode.bucket and ratio <= MAX_RATIO):
        return []
    becomes = {
        SquareMode.stretch: "stretch squashes it to a square; bucket, crop or pad would not",
        SquareMode.crop: f"crop keeps the middle {1 / ratio:.0%} of it",
        SquareMode.pad: f"pad leaves {1 - 1 / ratio:.0%} of the square white",
        SquareMode.bucket: f"bucket keeps the middle {MAX_RATIO / ratio:.0%} of it",
    }
    return [f"its sides are {ratio:.1f} : 1, and data.square_mode = {becomes[mode]}"]


def _content(path: Path) -> bytes:
    """The SHA-256 of a file's bytes. OSError if it cannot be read."""
    return bytes.fromhex(file_hash(path).removeprefix("sha256:"))


def _by_words(facts: list[tuple[str, str]]) -> list[str]:
    """Facts (file name, words) as notes, the files of which the same is to be noted in one."""
    names: dict[str, list[str]] = {}
    for name, words in facts:
        names.setdefault(words, []).append(name)
    return [
        f"{', '.join(files[:MAX_NAMED])}{f' and {len(files) - MAX_NAMED} more' * (len(files) > MAX_NAMED)}: {words}"
        for words, files in names.items()
    ]


def _to_tensor(image: Image.Image) -> Tensor:
    """RGB or L image to [3,H,W] or [1,H,W], 0..255 in float32."""
    values = torch.from_numpy(np.array(image, dtype=np.float32))
    return values.permute(2, 0, 1) if values.dim() == 3 else values[None]
