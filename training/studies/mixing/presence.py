"""Does a picture show this concept, or a thing of this category? Linear detectors on a CLIP's features.

A CLIP's own zero-shot answer names the one thing that a picture is most like; asked about two things at once it has
nothing to compare with. So each concept and each category gets a linear detector, learned from real renders of one and
of two things. What a detector finds in renders it has not seen is reported beside everything that it is used for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ....models.judging.metric_model import CLIPMetricModel
from .pair_scenes import Labelled

WINDOW = 0.62  # side of a corner window, in widths of the picture: a thing of a pair fills about one of the four
RIDGE = 0.1


def pooled_features(metric_model: CLIPMetricModel, images: Sequence[Image.Image]) -> np.ndarray:
    """[N, 3D]: the whole picture, and the maximum and the mean over its four corner windows."""
    views = [view for image in images for view in (image, *_corners(image))]
    features = metric_model.image_features(views).numpy().reshape(len(images), 5, -1)
    corners = features[:, 1:]
    return np.concatenate([features[:, 0], corners.max(axis=1), corners.mean(axis=1)], axis=1)


@dataclass(frozen=True)
class Detectors:
    """One linear detector per name; `weights` [3D + 1, names], the last row a bias, `thresholds` [names]."""

    names: tuple[str, ...]
    weights: np.ndarray
    thresholds: np.ndarray

    @classmethod
    def learn(cls, names: Sequence[str], features: np.ndarray, shown: Sequence[frozenset[str]]) -> Detectors:
        """features [N,3D] of renders that show the names in `shown`: ridge regression on -1 and 1.

        Each threshold is set to where sensitivity plus specificity is largest, on scores that leave the render out
        which they judge; on scores of the fit itself all detectors would look perfect.
        """
        truth = np.array([[name in one for name in names] for one in shown])
        inputs, target = _with_bias(features), 2.0 * truth - 1
        inverse = np.linalg.inv(inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1]))
        weights = inverse @ (inputs.T @ target)
        leverage = np.einsum("ni,ij,nj->n", inputs, inverse, inputs)[:, None]
        left_out = target - (target - inputs @ weights) / (1 - leverage)
        thresholds = [_best_threshold(left_out[:, k], truth[:, k]) for k in range(len(names))]
        return cls(tuple(names), weights, np.array(thresholds))

    def found(self, features: np.ndarray) -> list[set[str]]:
        """For each picture [N,3D] the names it shows."""
        yes = _with_bias(features) @ self.weights > self.thresholds
        return [{name for name, one in zip(self.names, row, strict=True) if one} for row in yes]


@dataclass(frozen=True)
class Presence:
    """The detectors of all concepts and of all categories, on one metric model."""

    metric_model: CLIPMetricModel
    concepts: Detectors
    categories: Detectors

    @classmethod
    def learn(
        cls,
        metric_model: CLIPMetricModel,
        renders: Sequence[Labelled],
        concepts: Sequence[str],
        categories: Sequence[str],
    ) -> Presence:
        features = pooled_features(metric_model, [one.image for one in renders])
        return cls(
            metric_model,
            Detectors.learn(concepts, features, [one.concepts for one in renders]),
            Detectors.learn(categories, features, [one.categories for one in renders]),
        )

    def found(self, images: Sequence[Image.Image]) -> list[dict[str, list[str]]]:
        """For each picture the concepts and the categories that it shows, as JSON values."""
        features = pooled_features(self.metric_model, images)
        pairs = zip(self.concepts.found(features), self.categories.found(features), strict=True)
        return [{"concepts": sorted(concepts), "categories": sorted(categories)} for concepts, categories in pairs]


def _corners(image: Image.Image) -> list[Image.Image]:
    side = round(WINDOW * image.width)
    offsets = (0, image.width - side)
    return [image.crop((x, y, x + side, y + side)) for x in offsets for y in offsets]


def _with_bias(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float64)


def _best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """The middle between two scores at which most of both kinds are answered right."""
    order = np.sort(scores)
    candidates = (order[1:] + order[:-1]) / 2
    gains = [np.mean(scores[truth] > cut) + np.mean(scores[~truth] <= cut) for cut in candidates]
    return float(candidates[int(np.argmax(gains))])
