"""CLIP B as the judge: what it sees in an image, asked zero-shot, and the measures built on its features.

All features are unit vectors [N, D], so a dot product is a cosine similarity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from ...models.pretrained import model_folder
from ...utils.errors import UserError
from . import data
from .captions import PLACE_WORDS, STYLE_WORDS
from .clip import normalise, tokenise
from .styles import OWN_GROUND
from .world import Scene

BATCH = 128
QUESTIONS = ("place", "style", "category")
WORDINGS = 2  # of each fact, in the judge's prompts


class Judge:
    """A frozen CLIP with its tokenizer, in float32 on the CPU."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        self.model = model.float().eval().requires_grad_(False)
        self.tokenizer = tokenizer
        vision: Any = model.config.vision_config
        self.pixels: int = vision.image_size

    @classmethod
    def from_pretrained(cls, name_or_path: str) -> Judge:
        """Load "miniature-judge" or a transformers CLIPModel folder. UserError if it is missing or incomplete."""
        folder = model_folder(name_or_path)
        try:
            return cls(CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"judge {name_or_path!r}: {folder} is no complete CLIPModel folder ({reason})") from error

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit features [N,D] of RGB images of any size."""
        size = (self.pixels, self.pixels)
        features = []
        for start in range(0, len(images), BATCH):
            batch = (image.convert("RGB") for image in images[start : start + BATCH])
            fitted = (image if image.size == size else image.resize(size, Image.Resampling.LANCZOS) for image in batch)
            pixels = normalise(data.to_tensor(np.stack([np.asarray(image) for image in fitted])))
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            features.append(F.normalize(self.model.visual_projection(pooled), dim=-1))
        return torch.cat(features)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features [N,D] of texts."""
        features = []
        for start in range(0, len(texts), BATCH):
            ids = tokenise(self.tokenizer, list(texts[start : start + BATCH]))
            pooled = self.model.text_model(input_ids=ids).pooler_output
            features.append(F.normalize(self.model.text_projection(pooled), dim=-1))
        return torch.cat(features)


def truth(scene: Scene) -> dict[str, str]:
    """The right answer to each question; place is "" where the caption names none."""
    place = "" if scene.place == "plain" else scene.place
    return {"place": place, "style": scene.style, "category": scene.look.category}


def prompt_bank(categories: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """Captions over all categories, styles and places in several wordings, each with the answers that it stands for."""
    bank = []
    for category in categories:
        for style, style_words in STYLE_WORDS.items():
            for place, place_words in PLACE_WORDS.items():
                if style in OWN_GROUND and place != "plain":
                    continue
                for wording in range(WORDINGS):
                    text = style_words[wording % len(style_words)].format(
                        f"{'an' if category[0] in 'aeiou' else 'a'} {category}"
                    )
                    if place != "plain" or style == "photo":  # captions name the plain ground of photos only
                        text += f" {place_words[wording % len(place_words)]}"
                    named = "" if style in OWN_GROUND else place
                    bank.append((text, {"place": named, "style": style, "category": category}))
    return bank


def class_features(features: Tensor, labels: Sequence[str]) -> dict[str, Tensor]:
    """Label -> unit mean [D] of the features [N,D] that carry it; the empty label is no class."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        if label:
            rows.setdefault(label, []).append(row)
    return {label: F.normalize(features[chosen].mean(0), dim=-1) for label, chosen in rows.items()}


def nearest(features: Tensor, classes: Mapping[str, Tensor]) -> list[str]:
    """For each feature [N,D] the class whose vector [D] is most similar."""
    names = list(classes)
    best = (features @ torch.stack(list(classes.values())).t()).argmax(1)
    return [names[k] for k in best.tolist()]


class ZeroShot:
    """The judge's answers to QUESTIONS. A class is the mean of all bank captions that tell it."""

    def __init__(self, judge: Judge, categories: Iterable[str]) -> None:
        bank = prompt_bank(categories)
        features = judge.text_features([text for text, _ in bank])
        self.classes = {
            question: class_features(features, [answers[question] for _, answers in bank]) for question in QUESTIONS
        }

    def answers(self, image_features: Tensor) -> dict[str, list[str]]:
        """Question -> one answer per image."""
        return {question: nearest(image_features, classes) for question, classes in self.classes.items()}


def retrieval_rates(
    images: Tensor, texts: Tensor, captions: Sequence[str], *, pool: int = 32, draws: int = 8, seed: int = 0
) -> list[float]:
    """How often each image finds its own caption among `pool`: its own and others drawn at random, `draws` times.

    images, texts: unit features [N,D], row by row of the same scenes. Captions with the same words are never drawn
    against each other. ValueError if there are fewer than `pool` different captions.
    """
    if len(set(captions)) < pool:
        raise ValueError(f"{len(set(captions))} different captions, {pool} are needed")
    random = np.random.default_rng(seed)
    similarities = (images @ texts.t()).numpy()
    rates = []
    for row, own in enumerate(captions):
        others = np.array([k for k, caption in enumerate(captions) if caption != own])
        hits = 0
        for _ in range(draws):
            drawn: dict[str, int] = {}  # by wording: a caption said twice must not fill two places of the pool
            for k in random.permutation(others):
                drawn.setdefault(captions[k], int(k))
                if len(drawn) == pool - 1:
                    break
            hits += similarities[row, row] > similarities[row, list(drawn.values())].max()
        rates.append(hits / draws)
    return rates


def nearest_concept(features: Tensor, photos: Mapping[str, Tensor]) -> list[str]:
    """For each image [N,D] the concept whose photos [P,D] are, on average, most similar to it."""
    return nearest(features, {name: of_concept.mean(0) for name, of_concept in photos.items()})
