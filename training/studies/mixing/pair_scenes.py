"""Real renders of one or two things in one picture, and which: what a detector learns from and is tested on.

Pretraining never shows two DIFFERENT things together, and neither does `World.render`; this does, from the same glyphs
on the same backgrounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...miniature.world import objects, places
from ...miniature.world.objects import CONCEPTS, Look
from ...miniature.world.world import World

GROUNDS = ("plain", "plain", "table", "snow", "beach", "jungle")  # half of what is asked for is on no ground at all
LAYOUTS = ((0.24, 0.03), (0.2, 0.18))  # half the distance of two things, across and down, in widths of the picture


@dataclass(frozen=True)
class Labelled:
    """A picture and what it shows: names of held-out concepts, and categories."""

    image: Image.Image
    concepts: frozenset[str]
    categories: frozenset[str]


def concept_look(name: str) -> Look:
    """A held-out concept as an object to draw."""
    category, glyph = CONCEPTS[name]
    return Look(category, name, glyph)


def render_looks(world: World, looks: Sequence[Look], pixels: int, rng: np.random.Generator) -> Labelled:
    """One or two things, side by side or slantwise in either order, as photos. ValueError for more."""
    if not 1 <= len(looks) <= 2:
        raise ValueError(f"{len(looks)} things to draw, 1 or 2 are possible")
    width = places.SIZE
    image = places.PLACES[str(rng.choice(GROUNDS))](rng)
    across, down = LAYOUTS[int(rng.integers(len(LAYOUTS)))]
    down = down if rng.random() < 0.5 else -down
    ordered = [looks[k] for k in rng.permutation(len(looks))]
    for side, look in zip((-1, 1), ordered, strict=False):
        material = objects.object_image(look, world.font, rng)
        if rng.random() < 0.5:
            material = material.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if len(looks) == 1:
            size = rng.uniform(0.42, 0.85)
            room = max(1 - size, 0.12)
            x, y = 0.5 + 0.5 * room * rng.uniform(-1, 1, size=2)
        else:
            size = rng.uniform(0.36, 0.5)
            x, y = 0.5 + side * across, 0.5 + side * down + rng.uniform(-0.06, 0.06)
        turned = material.rotate(rng.normal(0, 8), Image.Resampling.BICUBIC, expand=True)
        scale = size * width / objects.GLYPH_PIXELS
        turned = turned.resize((round(turned.width * scale), round(turned.height * scale)), Image.Resampling.BILINEAR)
        image.paste(turned, (round(x * width - turned.width / 2), round(y * width - turned.height / 2)), turned)
    return Labelled(
        image=image.resize((pixels, pixels), Image.Resampling.LANCZOS),
        concepts=frozenset(look.name for look in looks) & CONCEPTS.keys(),
        categories=frozenset(look.category for look in looks),
    )


def random_renders(
    world: World, concepts: Sequence[str], categories: Sequence[str], pixels: int, count: int, seed: int
) -> list[Labelled]:
    """Pictures of one thing, of one thing twice, and of two, each a held-out concept or a known thing at even odds."""
    shown = []
    for k in range(count):
        rng = np.random.default_rng((seed, k))
        first, second = (_draw(world, concepts, categories, rng) for _ in range(2))
        looks = [[first], [first, first], [first, second]][k % 3]
        shown.append(render_looks(world, looks, pixels, rng))
    return shown


def _draw(world: World, concepts: Sequence[str], categories: Sequence[str], rng: np.random.Generator) -> Look:
    if rng.random() < 0.5:
        return concept_look(str(rng.choice(concepts)))
    category = str(rng.choice(categories))
    name = str(rng.choice(list(world.categories[category])))
    colour = str(rng.choice(list(objects.COLOURS))) if rng.random() < 0.3 else None
    return Look(category, name, world.categories[category][name], colour)
