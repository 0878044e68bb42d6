"""The miniature's world: a scene is object x place x style x count, drawn from (seed, index) and nothing else."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from . import objects, places, styles
from .objects import Look


@dataclass(frozen=True)
class Scene:
    """Everything that is true of one picture. ``size`` is the object's share of the width; positions in -1..1."""

    look: Look
    place: str
    style: str
    count: int
    size: float
    x: float
    y: float
    angle: float
    flip: bool
    light: str | None  # "dark" | "bright" | None
    seed: int


@dataclass(frozen=True)
class World:
    """The objects of one scale (`cpu` or `gpu`), with the font that draws them."""

    font: str
    categories: dict[str, dict[str, str]]

    @classmethod
    def create(cls, scale: str, font: Path | str | None = None) -> World:
        """The world of scale `cpu` or `gpu`. UserError without the font."""
        return cls(str(objects.find_font(font)), objects.world_objects(scale))

    def scene(self, seed: int, index: int, held_out: bool = False) -> Scene:
        """The scene of (seed, index): with ``held_out`` a combination training never sees, else one of the others."""
        for attempt in range(1000):
            scene = self._draw(np.random.default_rng((seed, index, attempt)))
            if is_held_out(scene) == held_out:
                return scene
        raise AssertionError("a thousand draws without a fitting combination")

    def _draw(self, rng: np.random.Generator) -> Scene:
        category = str(rng.choice(list(self.categories)))
        name = str(rng.choice(list(self.categories[category])))
        colour = str(rng.choice(list(objects.COLOURS))) if rng.random() < 0.4 else None
        pattern = str(rng.choice(objects.PATTERNS)) if rng.random() < 0.14 else None
        style = "photo" if rng.random() < 0.52 else str(rng.choice(styles.STYLES[1:]))
        place = "plain" if style in styles.OWN_GROUND or rng.random() < 0.28 else str(rng.choice(list(places.PLACES)))
        return Scene(
            look=Look(category, name, self.categories[category][name], colour, pattern),
            place=place,
            style=style,
            count=2 if rng.random() < 0.1 and style not in ("statue", "icon") else 1,
            size=float(np.clip(rng.normal(0.68, 0.1), 0.42, 0.92)),
            x=float(np.clip(rng.normal(0, 0.45), -1, 1)),
            y=float(np.clip(rng.normal(0.1, 0.4), -1, 1)),
            angle=float(rng.normal(0, 7)),
            flip=bool(rng.random() < 0.5),
            light=str(rng.choice(["dark", "bright"])) if rng.random() < 0.08 else None,
            seed=int(rng.integers(2**31)),
        )

    def render(self, scene: Scene, pixels: int) -> Image.Image:
        """Draw a scene at 128 px and reduce it to ``pixels``, RGB."""
        return self.render_with_mask(scene, pixels)[0]

    def render_with_mask(self, scene: Scene, pixels: int) -> tuple[Image.Image, Image.Image]:
        """A scene as ``render`` draws it, and where its objects are, mode L: 255 object, 0 ground, edges between.

        A style that repaints the finished picture may move an edge by a pixel or two; the mask stays where it was.
        """
        rng = np.random.default_rng(scene.seed)
        own = scene.style in styles.OWN_GROUND
        image = styles.ground(scene.style, rng) if own else places.PLACES[scene.place](rng)
        mask = Image.new("L", image.size)
        material = styles.remake(objects.object_image(scene.look, self.font, rng), scene.style, rng)
        if scene.flip:
            material = material.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for centre_x, centre_y, width in _positions(scene):
            angle = scene.angle + (rng.normal(0, 4) if scene.count > 1 else 0)
            turned = material.rotate(angle, Image.Resampling.BICUBIC, expand=True)
            scale = width * places.SIZE / objects.GLYPH_PIXELS
            turned = turned.resize(
                (round(turned.width * scale), round(turned.height * scale)), Image.Resampling.BILINEAR
            )
            corner = round(centre_x - turned.width / 2), round(centre_y - turned.height / 2)
            image.paste(turned, corner, turned)
            mask.paste(255, (*corner, corner[0] + turned.width, corner[1] + turned.height), turned)
        if not own:
            image = styles.repaint(image, scene.style, rng)
        if scene.light:
            image = ImageEnhance.Brightness(image).enhance(0.5 if scene.light == "dark" else 1.4)
        size = (pixels, pixels)
        return image.resize(size, Image.Resampling.LANCZOS), mask.resize(size, Image.Resampling.BOX)  # BOX: no ringing


def _positions(scene: Scene) -> list[tuple[float, float, float]]:
    """Centres and widths of the objects, in pixels and in shares of the width."""
    width = places.SIZE
    if scene.count == 2:
        size = min(scene.size, 0.56) * 0.82
        return [(width * (0.5 + side * 0.25), width * (0.5 + 0.1 * scene.y + 0.03 * side), size) for side in (-1, 1)]
    if scene.style in ("icon", "statue"):
        size, centre = (min(scene.size, 0.62), 0.5) if scene.style == "icon" else (min(scene.size, 0.66), 0.42)
        return [(width / 2, width * centre, size)]
    room = max(1 - scene.size, 0.12)
    return [(width * (0.5 + 0.5 * room * scene.x), width * (0.5 + 0.5 * room * scene.y), scene.size)]


def is_held_out(scene: Scene) -> bool:
    """Some (category, place, style) combinations never occur in training: about one in fifteen."""
    if scene.place == "plain" and scene.style == "photo":
        return False
    return zlib.crc32(f"{scene.look.category}/{scene.place}/{scene.style}".encode()) % 15 == 0


def concept_scenes(name: str, count: int = 5, *, start: int = 0, place: str | None = None) -> list[Scene]:
    """Photos `start`, ... of a held-out concept: the object placed and turned differently, on simple backgrounds.

    place: all in this one instead; where the object is and how it is turned stays the same.
    """
    category, glyph = objects.CONCEPTS[name]
    grounds = ["plain", "table", "plain", "snow", "plain"]
    scenes = []
    for k in range(start, start + count):
        rng = np.random.default_rng((zlib.crc32(name.encode()), k))
        scenes.append(
            Scene(
                look=Look(category, name, glyph),
                place=place or grounds[k % len(grounds)],
                style="photo",
                count=1,
                size=float(rng.uniform(0.6, 0.82)),
                x=float(rng.uniform(-0.6, 0.6)),
                y=float(rng.uniform(-0.4, 0.6)),
                angle=float(rng.normal(0, 8)),
                flip=bool(rng.random() < 0.5),
                light=None,
                seed=int(rng.integers(2**31)),
            )
        )
    return scenes


def style_scenes(world: World) -> list[Scene]:
    """Pictures in the held-out style: different things in different places, so that only the style is common."""
    scenes = []
    for k, (category, place) in enumerate(
        [("car", "plain"), ("bird", "beach"), ("cup", "table"), ("dog", "jungle"), ("flower", "plain"), ("cat", "snow")]
    ):
        name, glyph = next(iter(world.categories[category].items()))
        base = world.scene(3, k)
        look = Look(category, name, glyph)
        scenes.append(replace(base, look=look, place=place, style=styles.HELD_OUT_STYLE, count=1, size=0.7, light=None))
    return scenes
