"""How a scene is made: ten styles. Some repaint the finished scene, some remake the object and its ground."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from . import places

Rng = np.random.Generator
STYLES = ("photo", "monet", "oil", "chagall", "manga", "watercolor", "statue", "icon", "sand", "graffiti")
HELD_OUT_STYLE = "old print"  # never drawn in training: the style to personalise
OWN_GROUND = ("icon", "graffiti", "statue", "sand")  # these bring their own background; the caption names no place


def _dabs(image: Image.Image, rng: Rng, reach: float, cell: int) -> Image.Image:
    """Displace pixels by smooth random offsets of ``reach`` pixels: brush strokes of ``cell`` pixels."""
    array = np.asarray(image)
    height, width = array.shape[:2]
    cells = (height // cell + 2, width // cell + 2)
    field = np.kron(rng.normal(0, reach, (2, *cells)), np.ones((1, cell, cell)))[:, :height, :width]
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(
        array[np.clip(y + field[0], 0, height - 1).astype(int), np.clip(x + field[1], 0, width - 1).astype(int)]
    )


def _monet(image: Image.Image, rng: Rng) -> Image.Image:
    soft = np.asarray(_dabs(image.filter(ImageFilter.GaussianBlur(1.0)), rng, 1.7, 4), np.float32)
    flecks = np.kron(rng.normal(0, 9, (32, 32, 3)), np.ones((4, 4, 1)))
    pastel = 0.72 * soft + 0.28 * np.array([196, 176, 236])
    return Image.fromarray(np.clip(pastel + flecks, 0, 255).astype(np.uint8))


def _oil(image: Image.Image, rng: Rng) -> Image.Image:
    thick = np.asarray(ImageEnhance.Color(image.filter(ImageFilter.ModeFilter(7))).enhance(1.25), np.float32)
    y, x = np.mgrid[:128, :128]
    strokes = 17 * np.sin(0.9 * (x + y) + rng.uniform(0, 6) + 1.5 * np.sin(y / 9))
    warm = thick * np.array([0.98, 0.86, 0.68]) + strokes[..., None]
    return Image.fromarray(np.clip(warm, 0, 255).astype(np.uint8))


def _chagall(image: Image.Image, rng: Rng) -> Image.Image:
    grey = np.asarray(ImageOps.autocontrast(image.convert("L")), np.float32)[..., None] / 255
    blue = np.array([26, 30, 128]) * (1 - grey) + np.array([150, 190, 255]) * grey
    mixed = Image.fromarray(np.clip(0.52 * np.asarray(image, np.float32) + 0.48 * blue, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(mixed, "RGBA")
    for _ in range(3):  # the dream's floating facets, at the edges
        corner = np.array([[8, 20], [118, 30], [14, 110], [116, 112], [64, 6]])[int(rng.integers(5))]
        points = [tuple(int(v) for v in corner + rng.integers(-34, 34, 2)) for _ in range(3)]
        draw.polygon(points, fill=[(225, 40, 60, 110), (250, 200, 60, 100), (40, 160, 90, 100)][int(rng.integers(3))])
    return _dabs(mixed, rng, 0.8, 6)


def _manga(image: Image.Image, rng: Rng) -> Image.Image:
    light = 255 * np.sqrt(np.asarray(ImageOps.autocontrast(image.convert("L")), np.float32) / 255)
    outline = np.stack([np.asarray(c.filter(ImageFilter.FIND_EDGES), np.float32) for c in image.split()]).max(0)
    edges = np.asarray(Image.fromarray(outline.astype(np.uint8)).filter(ImageFilter.MaxFilter(3)), np.float32)
    levels = np.select([light < 80, light < 165], [70.0, 175.0], 250.0)
    ink = np.where(edges > 75, 14, levels)
    return Image.fromarray(ink.astype(np.uint8)).convert("RGB")


def _watercolor(image: Image.Image, rng: Rng) -> Image.Image:
    wash = np.asarray(_dabs(image.filter(ImageFilter.GaussianBlur(1.8)), rng, 1.5, 9), np.float32)
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    wobble = np.kron(rng.normal(0, 0.09, (16, 16)), np.ones((8, 8)))
    paper = np.clip((np.maximum(abs(x), abs(y)) + wobble - 0.72) * 7, 0, 1)[..., None]
    pale = 0.68 * wash + 0.32 * 255
    return Image.fromarray((pale * (1 - paper) + np.array([250, 247, 240]) * paper).astype(np.uint8))


def _old_print(image: Image.Image, rng: Rng) -> Image.Image:
    grey = np.asarray(ImageOps.autocontrast(image.convert("L").filter(ImageFilter.GaussianBlur(0.8))), np.float32) / 255
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    faded = np.clip(1 - 0.3 * (x**2 + y**2), 0, 1) * (0.12 + 0.88 * grey)
    sepia = np.array([72, 34, 12]) * (1 - faded[..., None]) + np.array([250, 218, 152]) * faded[..., None]
    return Image.fromarray(np.clip(sepia + rng.normal(0, 4, (128, 128, 1)), 0, 255).astype(np.uint8))


def repaint(image: Image.Image, style: str, rng: Rng) -> Image.Image:
    """Turn a finished 128 x 128 scene into a painting, drawing or photo."""
    if style == "photo":
        return image
    filters = {
        "monet": _monet,
        "oil": _oil,
        "chagall": _chagall,
        "manga": _manga,
        "watercolor": _watercolor,
        HELD_OUT_STYLE: _old_print,
    }
    return filters[style](image, rng)


def ground(style: str, rng: Rng) -> Image.Image:
    """The background that a style in OWN_GROUND brings along."""
    if style == "graffiti":
        return places.brick_wall(rng)
    if style == "sand":
        return places.beach(rng)
    if style == "statue":
        image = places._gradient(places._vary(rng, (150, 190, 225)), places._vary(rng, (205, 222, 232)))
        draw = ImageDraw.Draw(image)
        draw.rectangle([0, 104, 128, 128], fill=places._vary(rng, (122, 150, 96)))
        draw.rectangle([32, 94, 96, 118], fill=places._vary(rng, (150, 148, 144), 8))
        draw.rectangle([26, 92, 102, 98], fill=places._vary(rng, (172, 170, 166), 8))
        return image
    image = Image.new("RGB", (128, 128), (244, 244, 246))
    top = tuple(
        int(c) for c in np.array(Image.new("HSV", (1, 1), (int(rng.integers(256)), 150, 235)).convert("RGB"))[0, 0]
    )
    tile = places._gradient(top, tuple(int(0.66 * c) for c in top))  # type: ignore[arg-type]
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rounded_rectangle([9, 9, 118, 118], radius=26, fill=255)
    image.paste(tile, (0, 0), mask)
    return image


def remake(obj: Image.Image, style: str, rng: Rng) -> Image.Image:
    """The object itself (RGBA) in a style's material: stone, sand, sprayed or unchanged."""
    alpha = obj.getchannel("A")
    if style not in ("statue", "sand", "graffiti"):
        return obj
    grey = (
        np.asarray(ImageOps.autocontrast(obj.convert("L"), mask=alpha.point(lambda a: 255 * (a > 128))), np.float32)[
            ..., None
        ]
        / 255
    )
    rgb: np.ndarray
    if style == "statue":
        rgb = np.array([84, 86, 92]) * (1 - grey) + np.array([214, 214, 210]) * grey
    elif style == "sand":
        rgb = np.array([148, 108, 56]) * (1 - grey) + np.array([244, 214, 150]) * grey
        rgb = rgb + rng.normal(0, 14, (*grey.shape[:2], 1))
    else:
        rgb = np.asarray(ImageEnhance.Color(ImageOps.posterize(obj.convert("RGB"), 2)).enhance(2.2), np.float32) + 20
    out = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    out.putalpha(alpha)
    if style == "graffiti":
        halo = Image.new(
            "RGBA", obj.size, [(255, 240, 60, 0), (60, 250, 255, 0), (255, 255, 255, 0)][int(rng.integers(3))]
        )
        halo.putalpha(alpha.filter(ImageFilter.MaxFilter(7)).filter(ImageFilter.GaussianBlur(1.5)))
        out = Image.alpha_composite(halo, out)
    return out
