"""What a training step of the encoder sees, whatever the pictures come from.

Shapes: B batch, S side of the target in pixels, I side of the encoder's input, G side of its grid of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

WORDS = 5


class Sample(NamedTuple):
    """One sample. Pictures are floats, [3,...].

    target [3,S,S] in -1..1: what the denoiser learns to draw; valid [1,S,S]: 1 where the target is a picture.
    image [3,I,I], object [3,I,I] in 0..1: what global and local mapper look at; mask [1,I,I]: the object, 0 or 1.
    text: the prompt with `{}` for the concept; words: how many of the five words stand there. noun: the object in
    plain words, "" where nobody knows them.
    skipped: files that could not be used on the way to this sample.
    """

    target: Tensor
    valid: Tensor
    image: Tensor
    object: Tensor
    mask: Tensor
    text: str
    words: int
    skipped: int = 0
    noun: str = ""


class Samples(Protocol):
    """Samples by number, without end: what number i shows depends on (seed, i) alone."""

    def __getitem__(self, number: int) -> Sample: ...


@dataclass(frozen=True)
class Collated:
    """A micro-batch of samples: the tensors of `Sample` with B in front, and B texts, all with `words` words."""

    target: Tensor
    valid: Tensor
    image: Tensor
    object: Tensor
    mask: Tensor
    texts: list[str]
    words: int
    numbers: list[int]
    skipped: int
    nouns: list[str]


def collate(numbered: Sequence[tuple[int, Sample]]) -> Collated:
    """Put samples together; they must all have the same number of words."""
    numbers, samples = zip(*numbered, strict=True)
    (words,) = {sample.words for sample in samples}
    stacked = {
        name: torch.stack([getattr(sample, name) for sample in samples])
        for name in ("target", "valid", "image", "object", "mask")
    }
    return Collated(
        **stacked,
        texts=[sample.text for sample in samples],
        words=words,
        numbers=list(numbers),
        skipped=sum(sample.skipped for sample in samples),
        nouns=[sample.noun for sample in samples],
    )


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB or grey image as [3|1,H,W] in 0..1."""
    pixels = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)
