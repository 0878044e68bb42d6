"""The metrics as pure functions of unit feature matrices: the protocol of Textual Inversion, and what it leaves out.

N generated images, M photos, D feature width. A *score* is what one independent unit (an image, or for diversity a
prompt) contributes; a metric is the mean of its scores, and the bootstrap resamples the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...models.conditioning.prompts import SLOT
from ...utils.config.choices import Choice

IMAGE, TEXT, DIVERSITY, DINO = "image_similarity", "text_similarity", "diversity", "dino_similarity"
REFERENCE, MASKED, IDENTITY = "reference_similarity", "masked_similarity", "identity_share"
METRICS = (IMAGE, TEXT, DIVERSITY, DINO, REFERENCE, MASKED, IDENTITY)

Scores = Mapping[str, np.ndarray]  # metric -> one score per unit


class PlaceholderRule(Choice):
    """What stands, where the concept stood in the prompt, in the text that an image is compared with."""

    removed = "removed"  # nothing: "A photo of  on a beach", the definition of Textual Inversion
    replaced = "replaced"  # the super-category word: "A photo of toy on a beach"


def compared_text(prompt: str, rule: PlaceholderRule, super_category: str) -> str:
    """The text that an image of `prompt` (with `{}` for the concept) is compared with."""
    return prompt.replace(SLOT, "" if rule is PlaceholderRule.removed else super_category)


def image_scores(generated: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """[N,D], [M,D] -> [N]: each generated image's mean cosine with all photos.

    Their mean is the image similarity: the mean over all photo x generated pairs.
    """
    return generated.astype(np.float64) @ photos.astype(np.float64).mean(axis=0)


def text_scores(generated: np.ndarray, text: np.ndarray) -> np.ndarray:
    """[N,D], [D] -> [N]: each image's cosine with the prompt's text."""
    return generated.astype(np.float64) @ text.astype(np.float64)


def identity_scores(generated: np.ndarray, own: str, concepts: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N,D], concept -> [M,D] -> [N]: 1.0 where the concept whose photos are most similar, on average, is `own`."""
    similarities = np.stack([image_scores(generated, photos) for photos in concepts.values()])
    return (similarities.argmax(axis=0) == list(concepts).index(own)).astype(np.float64)


def diversity(images: np.ndarray) -> float | None:
    """[N,D] -> 1 - the mean cosine over all pairs of DIFFERENT images (of one prompt); None for fewer than two."""
    count = len(images)
    if count < 2:
        return None
    rows = images.astype(np.float64)
    total = rows.sum(axis=0)
    pairs = float(total @ total) - float((rows * rows).sum())
    return 1.0 - pairs / (count * (count - 1))


def joined(parts: Sequence[Scores]) -> dict[str, np.ndarray]:
    """The scores of several prompts as those of one set of images."""
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}
