"""Where a scene happens: ten procedural backgrounds, each varied by a random generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128  # backgrounds are drawn at this size and reduced with antialiasing
Rng = np.random.Generator
Colour = tuple[int, int, int]


def _vary(rng: Rng, colour: Colour, amount: int = 14) -> Colour:
    shifted = np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 0, 255)
    return int(shifted[0]), int(shifted[1]), int(shifted[2])


def _whole(rng: Rng, low: int, high: int) -> int:
    return int(rng.integers(low, high))


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    t = np.linspace(0, 1, SIZE)[:, None, None]
    rows = np.array(top) * (1 - t) + np.array(bottom) * t
    return Image.fromarray(np.broadcast_to(rows, (SIZE, SIZE, 3)).astype(np.uint8))


def _horizon(rng: Rng, low: float = 0.5, high: float = 0.68) -> int:
    return int(SIZE * rng.uniform(low, high))


def _hills(draw: ImageDraw.ImageDraw, rng: Rng, base: int, height: int, colour: Colour) -> None:
    phase, wave = rng.uniform(0, 6.28), rng.uniform(0.03, 0.06)
    points = [(x, base - height * (0.5 + 0.5 * np.sin(wave * x + phase))) for x in range(0, SIZE + 4, 4)]
    draw.polygon([(0, SIZE), *points, (SIZE, SIZE)], fill=colour)


def plain(rng: Rng) -> Image.Image:
    pale = _vary(rng, (222, 222, 222), 33)
    return _gradient(pale, _vary(rng, pale, 10))


def jungle(rng: Rng) -> Image.Image:
    image = _gradient(_vary(rng, (20, 90, 40)), _vary(rng, (10, 50, 24)))
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x = int(rng.integers(0, SIZE))
        draw.line(
            [(x, 0), (x + int(rng.integers(-12, 12)), SIZE)],
            fill=_vary(rng, (70, 48, 24)),
            width=int(rng.integers(3, 8)),
        )
    for _ in range(46):
        x, y, r = (_whole(rng, *span) for span in ((-10, SIZE + 10), (-10, SIZE + 10), (8, 19)))
        draw.ellipse([x - r, y - r // 2, x + r, y + r // 2], fill=_vary(rng, (30, 120, 45), 36))
    return image


def beach(rng: Rng) -> Image.Image:
    sea = _horizon(rng, 0.32, 0.42)
    shore = sea + int(rng.integers(16, 26))
    image = _gradient(_vary(rng, (120, 195, 240)), _vary(rng, (190, 228, 248)))
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, sea, SIZE, SIZE], fill=_vary(rng, (30, 140, 190)))
    draw.rectangle([0, shore, SIZE, SIZE], fill=_vary(rng, (238, 214, 160)))
    draw.line([(0, shore), (SIZE, shore)], fill=(250, 250, 245), width=4)
    x = int(rng.integers(12, SIZE - 12))
    draw.ellipse([x - 9, 8, x + 9, 26], fill=(255, 235, 120))
    return image


def city(rng: Rng) -> Image.Image:
    image = _gradient(_vary(rng, (60, 55, 95)), _vary(rng, (130, 95, 125)))
    draw = ImageDraw.Draw(image)
    road = _horizon(rng, 0.72, 0.8)
    lights = [(255, 60, 90), (60, 200, 255), (255, 220, 60), (90, 255, 150), (255, 120, 240)]
    x = -4
    while x < SIZE:
        width, top = int(rng.integers(16, 30)), int(rng.integers(0, 50))
        draw.rectangle([x, top, x + width - 2, road], fill=_vary(rng, (58, 60, 78)))
        for _ in range(4):
            y = int(rng.integers(top, max(road - 14, top + 1)))
            draw.rectangle(
                [x + 3, y, x + width - 6, y + int(rng.integers(6, 14))], fill=lights[int(rng.integers(len(lights)))]
            )
        x += width
    draw.rectangle([0, road, SIZE, SIZE], fill=_vary(rng, (62, 62, 66)))
    for x in range(int(rng.integers(0, 20)), SIZE, 26):
        draw.rectangle([x, (road + SIZE) // 2, x + 13, (road + SIZE) // 2 + 3], fill=(240, 240, 230))
    return image


def moon(rng: Rng) -> Image.Image:
    image = _gradient((6, 6, 18), (14, 14, 32))
    draw = ImageDraw.Draw(image)
    for x, y in rng.integers(0, SIZE, (40, 2)):
        draw.rectangle([int(x), int(y), int(x) + 1, int(y) + 1], fill=(240, 240, 255))
    x = int(rng.integers(16, SIZE - 16))
    draw.ellipse([x - 12, 8, x + 12, 32], fill=(50, 110, 200))
    draw.ellipse([x - 6, 12, x + 5, 24], fill=(70, 160, 90))
    ground = _horizon(rng)
    draw.ellipse([-50, ground, SIZE + 50, ground + 160], fill=_vary(rng, (168, 168, 172)))
    for _ in range(9):
        x, y, r = (_whole(rng, *span) for span in ((0, SIZE), (ground + 10, SIZE + 6), (4, 13)))
        draw.ellipse([x - r, y - r // 3, x + r, y + r // 3], fill=_vary(rng, (128, 128, 134), 8))
    return image


def table(rng: Rng) -> Image.Image:
    wall = _vary(rng, (205, 190, 170), 30)
    image = _gradient(wall, _vary(rng, wall, 8))
    draw = ImageDraw.Draw(image)
    top = _horizon(rng, 0.58, 0.7)
    wood = _vary(rng, (150, 92, 48))
    draw.rectangle([0, top, SIZE, SIZE], fill=wood)
    draw.rectangle([0, top, SIZE, top + 4], fill=_vary(rng, (182, 120, 70), 6))
    for y in range(top + 12, SIZE, 10):
        draw.line([(0, y), (SIZE, y + int(rng.integers(-2, 3)))], fill=_vary(rng, (122, 72, 36), 6), width=2)
    return image


def snow(rng: Rng) -> Image.Image:
    image = _gradient(_vary(rng, (175, 200, 228)), _vary(rng, (222, 232, 244), 6))
    draw = ImageDraw.Draw(image)
    ground = _horizon(rng)
    for _ in range(4):
        x, h = int(rng.integers(0, SIZE)), int(rng.integers(28, 50))
        for k in range(3):
            y = ground + 4 - h * k // 4
            draw.polygon([(x - 13 + 3 * k, y), (x + 13 - 3 * k, y), (x, y - h // 2)], fill=_vary(rng, (52, 104, 84)))
    _hills(draw, rng, ground + 8, 12, (246, 249, 253))
    for x, y in rng.integers(0, SIZE, (50, 2)):
        draw.ellipse([int(x), int(y), int(x) + 3, int(y) + 3], fill=(255, 255, 255))
    return image


def desert(rng: Rng) -> Image.Image:
    image = _gradient(_vary(rng, (250, 160, 82)), _vary(rng, (253, 216, 150)))
    draw = ImageDraw.Draw(image)
    ground = _horizon(rng)
    _hills(draw, rng, ground, 26, _vary(rng, (206, 130, 70)))
    for x in (int(rng.integers(6, 32)), int(rng.integers(SIZE - 32, SIZE - 6))):
        draw.rectangle([x - 4, ground - 32, x + 4, ground + 16], fill=_vary(rng, (54, 124, 62)))
        draw.rectangle([x - 12, ground - 18, x + 12, ground - 12], fill=_vary(rng, (54, 124, 62)))
    _hills(draw, rng, ground + 18, 16, _vary(rng, (226, 160, 92)))
    return image


def sea(rng: Rng) -> Image.Image:
    image = _gradient(_vary(rng, (40, 165, 210)), _vary(rng, (8, 52, 118)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x = int(rng.integers(0, SIZE))
        draw.line(
            [(x + 8 * np.sin(k / 2), SIZE - 8 * k) for k in range(int(rng.integers(4, 8)))],
            fill=_vary(rng, (30, 130, 82)),
            width=5,
        )
    draw.ellipse([-40, SIZE - 14, SIZE + 40, SIZE + 40], fill=_vary(rng, (196, 178, 122)))
    for _ in range(14):
        x, y, r = (_whole(rng, *span) for span in ((0, SIZE), (0, SIZE - 16), (2, 6)))
        draw.ellipse([x - r, y - r, x + r, y + r], outline=(205, 240, 252), width=2)
    return image


def night(rng: Rng) -> Image.Image:
    image = _gradient(_vary(rng, (12, 16, 58), 8), _vary(rng, (40, 46, 112), 8))
    draw = ImageDraw.Draw(image)
    for x, y in rng.integers(0, 90, (24, 2)):
        draw.rectangle([int(x * 1.4), int(y), int(x * 1.4) + 1, int(y) + 1], fill=(250, 248, 220))
    x = int(rng.integers(14, SIZE - 30))
    draw.ellipse([x, 8, x + 24, 32], fill=(250, 240, 190))
    draw.ellipse([x + 7, 4, x + 29, 28], fill=(16, 20, 64))
    _hills(draw, rng, _horizon(rng, 0.78, 0.88), 14, _vary(rng, (14, 26, 34), 6))
    return image


def brick_wall(rng: Rng) -> Image.Image:
    """The ground of graffiti; not a place that captions name."""
    image = Image.new("RGB", (SIZE, SIZE), _vary(rng, (196, 182, 172), 8))
    draw = ImageDraw.Draw(image)
    for row, y in enumerate(range(0, SIZE, 16)):
        for x in range(-16 * (row % 2), SIZE, 32):
            draw.rectangle([x, y, x + 29, y + 13], fill=_vary(rng, (160, 78, 62), 12))
    return image.filter(ImageFilter.GaussianBlur(0.6))


PLACES: dict[str, Callable[[Rng], Image.Image]] = {
    "plain": plain,
    "jungle": jungle,
    "beach": beach,
    "city": city,
    "moon": moon,
    "table": table,
    "snow": snow,
    "desert": desert,
    "sea": sea,
    "night": night,
}
