"""Which image each sample shows: a pure function of the seed and the sample's number."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

_ORDER, _TURNS = 0, 2  # separate streams of randomness; `dataset` has 1


def image_of(index: int, seed: int, repeats: int, buckets: Sequence[int], group: int) -> int:
    """The image that sample `index` shows.

    buckets: of each image, from 0; all images that a step shows must be of one bucket, since a batch is one tensor.
    group: samples per step, of which the first has a multiple of it as its number.

    Each step is one bucket's turn. Turns come in rounds of one turn for each image, in shuffled order, so that every
    image is shown equally often; within a bucket, an epoch shows every image `repeats` times in shuffled order. With
    one bucket the steps do not matter: it is its turn always.
    """
    (turn, offset), images = divmod(index, group), len(buckets)
    done, position = divmod(turn, images)
    turns = [buckets[image] for image in _shuffled(images, seed, _TURNS, done)]
    bucket = turns[position]
    members = [image for image, own in enumerate(buckets) if own == bucket]
    earlier = done * len(members) + turns[:position].count(bucket)
    epoch, place = divmod(earlier * group + offset, len(members) * repeats)
    stream = (_ORDER, epoch, bucket) if bucket else (_ORDER, epoch)
    return members[int(_shuffled(len(members) * repeats, seed, *stream)[place]) % len(members)]


@functools.lru_cache(maxsize=8)
def _shuffled(length: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(length)
