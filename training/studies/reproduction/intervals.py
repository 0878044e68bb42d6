"""Reading curves: after how many steps a level is reached, and what is offered at a given text similarity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def steps_to_reach(level: float, steps: Sequence[int], values: np.ndarray) -> float:
    """After how many steps a curve first reaches `level`, straight lines between its points.

    A curve that starts above the level reaches it at its first point, which is as early as was looked. The level must
    not lie above the curve's highest value.
    """
    first = int(np.argmax(values >= level))
    if first == 0:
        return float(steps[0])
    before, after = values[first - 1], values[first]
    return float(steps[first - 1] + (steps[first] - steps[first - 1]) * (level - before) / (after - before))


def image_at_text(text: float, curve: np.ndarray, otherwise: float) -> float:
    """The image similarity that a curve offers to whoever wants text similarity `text`.

    curve [K,2]: (image, text) similarity of a method's truncations. Between two of them straight lines are drawn. Below
    the lowest text similarity of the curve its image similarity there counts: more text than was asked for is no harm.
    Above the highest one the method has nothing to offer, and `otherwise` counts.
    """
    points = curve[np.argsort(curve[:, 1])]
    if text > points[-1, 1]:
        return otherwise
    return float(np.interp(text, points[:, 1], points[:, 0]))
