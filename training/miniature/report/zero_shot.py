"""What a metric model sees in an image, asked zero-shot, and the measures built on its features.

All features are unit vectors [N, D], so a dot product is a cosine similarity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..world.captions import PLACE_WORDS, STYLE_WORDS
from ..world.styles import OWN_GROUND
from ..world.world import Scene

QUESTIONS = ("place", "style", "category")
WORDINGS = 2  # of each choice that the metric model is given


def truth(scene: Scene) -> dict[str, str]:
    """The right answer to each question; place is "" where the caption names none."""
    place = "" if scene.place == "plain" else scene.place
    return {"place": place, "style": scene.style, "category": scene.look.category}


def choices(scene: Scene, question: str, categories: Sequence[str]) -> dict[str, list[str]]:
    """Answer -> captions that give it, in several wordings, and are right about the scene in everything else."""
    options = {"place": list(PLACE_WORDS), "style": list(STYLE_WORDS), "category": categories}[question]
    facts = {"place": scene.place, "style": scene.style, "category": scene.look.category}
    return {option: _wordings(**{**facts, question: option}) for option in options}


def _wordings(place: str, style: str, category: str) -> list[str]:
    subject = f"{'an' if category[0] in 'aeiou' else 'a'} {category}"
    texts = [words.format(subject) for words in _first(STYLE_WORDS[style])]
    if place == "plain" or style in OWN_GROUND:
        return texts
    return [f"{text} {words}" for text, words in zip(texts, _first(PLACE_WORDS[place]), strict=True)]


def _first(words: Sequence[str]) -> list[str]:
    """As many wordings as are used; a fact that has fewer repeats them."""
    return [words[k % len(words)] for k in range(WORDINGS)]


def class_features(features: Tensor, labels: Sequence[str]) -> dict[str, Tensor]:
    """Label -> unit mean [D] of the features [N,D] that carry it."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return {label: F.normalize(features[chosen].mean(0), dim=-1) for label, chosen in rows.items()}


def nearest(features: Tensor, classes: Mapping[str, Tensor]) -> list[str]:
    """For each feature [N,D] the class whose vector [D] is most similar."""
    names = list(classes)
    best = (features @ torch.stack(list(classes.values())).t()).argmax(1)
    return [names[k] for k in best.tolist()]


def answers(
    encode: Callable[[Sequence[str]], Tensor], features: Tensor, scenes: Sequence[Scene], categories: Sequence[str]
) -> dict[str, list[str]]:
    """Question -> the answer per image, given the features [N,D] of images of `scenes` and the text encoder.

    Zero-shot as with CLIP: the answer is the class whose captions, averaged over wordings, are most similar to the
    image. All captions of one choice are right about the rest of the scene, so that only the question decides.
    """
    offered = [{question: choices(scene, question, categories) for question in QUESTIONS} for scene in scenes]
    texts = list(dict.fromkeys(text for one in offered for o in one.values() for w in o.values() for text in w))
    encoded = dict(zip(texts, encode(texts), strict=True))
    found: dict[str, list[str]] = {question: [] for question in QUESTIONS}
    for image, of_scene in zip(features, offered, strict=True):
        for question, options in of_scene.items():
            rows = [(encoded[text], option) for option, wordings in options.items() for text in wordings]
            classes = class_features(torch.stack([row for row, _ in rows]), [option for _, option in rows])
            found[question] += nearest(image[None], classes)
    return found


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
