"""The things of the miniature's world: emoji glyphs of Noto Color Emoji in categories, recoloured and patterned.

A glyph is the "instance"; its category word is what a user calls the super category. The glyphs in ``CONCEPTS`` never
occur in pretraining, only their category words do: they are the held-out concepts that the toolkit personalises.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ....utils.errors import UserError

FONT_SIZE = 109  # the only size in which the bitmap font exists
FONT_PLACES = [  # of Debian and of other Linux distributions
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
    Path("NotoColorEmoji.ttf"),
]
GLYPH_PIXELS = 96

# category -> {specific name: glyph}; the first block is the `cpu` scale, the second is added at the `gpu` scale
OBJECTS: dict[str, dict[str, str]] = {
    "cat": {
        "kitten": "🐱",
        "happy cat": "😺",
        "grinning cat": "😸",
        "sly cat": "😼",
        "orange kitty": "🐈",
        "lion": "🦁",
    },
    "dog": {"puppy": "🐶", "beagle": "🐕", "poodle": "🐩", "retriever": "🦮", "fox": "🦊"},
    "bird": {
        "chick": "🐤",
        "penguin": "🐧",
        "duck": "🦆",
        "owl": "🦉",
        "parrot": "🦜",
        "flamingo": "🦩",
        "rooster": "🐓",
    },
    "fish": {"tuna": "🐟", "angelfish": "🐠", "blowfish": "🐡", "shark": "🦈", "dolphin": "🐬"},
    "bear": {"brown bear": "🐻", "panda": "🐼", "koala": "🐨", "teddy": "🧸"},
    "car": {"sedan": "🚗", "jeep": "🚙", "van": "🚐", "racer": "🏎", "truck": "🚚"},
    "cup": {"coffee": "☕", "soda": "🥤", "beer": "🍺", "milk": "🥛", "mate": "🧉"},
    "fruit": {
        "apple": "🍎",
        "pear": "🍐",
        "tangerine": "🍊",
        "lemon": "🍋",
        "strawberry": "🍓",
        "melon": "🍉",
        "kiwi": "🥝",
    },
    "flower": {"cherry blossom": "🌸", "rose": "🌹", "daisy": "🌼", "tulip": "🌷", "rosette": "🏵"},
    "ball": {"football": "⚽", "basketball": "🏀", "baseball": "⚾", "volleyball": "🏐"},
    "shoe": {"sneaker": "👟", "heel": "👠", "boot": "👢", "loafer": "👞", "sandal": "👡"},
    "bag": {"handbag": "👜", "backpack": "🎒", "pouch": "👝", "briefcase": "💼"},
    "insect": {"butterfly": "🦋", "bee": "🐝", "caterpillar": "🐛", "ant": "🐜", "beetle": "🪲"},
}
MORE_OBJECTS: dict[str, dict[str, str]] = {
    "hat": {"top hat": "🎩", "sunhat": "👒", "cap": "🧢", "crown": "👑", "helmet": "⛑"},
    "cake": {"birthday cake": "🎂", "shortcake": "🍰", "cupcake": "🧁", "doughnut": "🍩", "pudding": "🍮"},
    "instrument": {"guitar": "🎸", "violin": "🎻", "drum": "🥁", "trumpet": "🎺", "banjo": "🪕", "saxophone": "🎷"},
    "tree": {"pine": "🌲", "palm": "🌴", "oak": "🌳", "cactus": "🌵"},
    "house": {"cottage": "🏠", "villa": "🏡", "castle": "🏰", "church": "⛪", "ruin": "🏚"},
    "boat": {"sailboat": "⛵", "speedboat": "🚤", "ship": "🚢", "canoe": "🛶"},
    "clock": {"alarm": "⏰", "mantel clock": "🕰", "stopwatch": "⏱"},
    "rabbit": {"bunny": "🐰", "hare": "🐇"},
    "frog": {"frog face": "🐸", "turtle": "🐢"},
    "toy": {"robot": "🤖", "alien": "👾", "pumpkin": "🎃", "ghost": "👻"},
    "book": {"red book": "📕", "green book": "📗", "blue book": "📘", "notebook": "📓"},
}

# held-out concept -> (super category, glyph); four categories appear twice: their word cannot tell the two apart
CONCEPTS: dict[str, tuple[str, str]] = {
    "tiger": ("cat", "🐯"),
    "wolf": ("dog", "🐺"),
    "bluebird": ("bird", "🐦"),
    "eagle": ("bird", "🦅"),
    "taxi": ("car", "🚕"),
    "police_car": ("car", "🚓"),
    "teacup": ("cup", "🍵"),
    "teapot": ("cup", "🫖"),
    "sunflower": ("flower", "🌻"),
    "hibiscus": ("flower", "🌺"),
}

# held-out concept -> the one place of its second set of photos, in combinations that the model has seen
ONE_PLACE: dict[str, str] = {
    "tiger": "snow",
    "wolf": "desert",
    "bluebird": "night",
    "eagle": "city",
    "taxi": "snow",
    "police_car": "jungle",
    "teacup": "beach",
    "teapot": "table",
    "sunflower": "moon",
    "hibiscus": "sea",
}

# colour word -> (hue in turns or None for a grey, saturation gain, value gain)
COLOURS: dict[str, tuple[float | None, float, float]] = {
    "red": (0.0, 1.0, 0.95),
    "orange": (0.075, 1.0, 1.0),
    "yellow": (0.145, 1.0, 1.05),
    "green": (0.34, 0.95, 0.85),
    "blue": (0.59, 1.0, 0.95),
    "purple": (0.77, 0.85, 0.9),
    "pink": (0.92, 0.6, 1.05),
    "brown": (0.065, 0.75, 0.62),
    "white": (None, 0.06, 1.3),
    "black": (None, 0.1, 0.4),
}
PATTERNS = ("striped", "spotted", "checkered")


@dataclass(frozen=True)
class Look:
    """How one object looks: glyph plus the attributes that captions may or may not mention."""

    category: str
    name: str
    glyph: str
    colour: str | None = None
    pattern: str | None = None


def world_objects(scale: str) -> dict[str, dict[str, str]]:
    """Category -> {specific name: glyph} of the world of this scale, `cpu` or `gpu`."""
    return {**OBJECTS, **(MORE_OBJECTS if scale == "gpu" else {})}


def find_font(path: str | Path | None = None) -> Path:
    """Path of NotoColorEmoji.ttf: ``path``, or the usual places. UserError if it is not there, or not that font."""
    candidates = [Path(path)] if path else FONT_PLACES
    for candidate in filter(Path.is_file, candidates):
        try:
            ImageFont.truetype(str(candidate), FONT_SIZE)
        except OSError as error:
            raise UserError(f"font {candidate} is not Noto Color Emoji ({error})") from None
        return candidate
    where = f"there is no font {path}" if path else "NotoColorEmoji.ttf is not installed"
    raise UserError(f"{where}: install the Debian package fonts-noto-color-emoji, or pass the font's path as `font`")


@lru_cache(maxsize=512)
def glyph_image(glyph: str, font: str) -> Image.Image:
    """One glyph, cropped to its ink and fitted into GLYPH_PIXELS x GLYPH_PIXELS, RGBA."""
    canvas = Image.new("RGBA", (144, 136))
    ImageDraw.Draw(canvas).text((0, 0), glyph, font=ImageFont.truetype(font, FONT_SIZE), embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font has no glyph for {glyph!r}")
    ink = canvas.crop(box)
    scale = GLYPH_PIXELS / max(ink.size)
    ink = ink.resize((round(ink.width * scale), round(ink.height * scale)), Image.Resampling.BICUBIC)
    square = Image.new("RGBA", (GLYPH_PIXELS, GLYPH_PIXELS))
    square.paste(ink, ((GLYPH_PIXELS - ink.width) // 2, (GLYPH_PIXELS - ink.height) // 2))
    return square


def recolour(image: Image.Image, colour: str) -> Image.Image:
    """Move an RGBA glyph to a colour word: hue replaced, shading kept, white highlights and black outlines kept."""
    hue, saturation_gain, value_gain = COLOURS[colour]
    alpha = image.getchannel("A")
    hsv = np.asarray(image.convert("RGB").convert("HSV"), np.float32) / 255
    h, s, v = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    if hue is None:
        s, v = s * saturation_gain, v * value_gain
    else:
        chroma = np.clip(0.25 + 0.9 * s, 0, 1) * (0.35 + 0.65 * (s > 0.12))  # greys take a tint, colours the full hue
        h, s, v = np.full_like(h, hue), chroma * saturation_gain, v * value_gain
    out = np.stack([h, np.clip(s, 0, 1), np.clip(v, 0, 1)], -1)
    rgb = Image.fromarray((out * 255).astype(np.uint8), "HSV").convert("RGB")
    rgb.putalpha(alpha)
    return rgb


def add_pattern(image: Image.Image, pattern: str, contrast: np.ndarray, period: float) -> Image.Image:
    """Draw stripes, spots or checks of colour ``contrast`` [3] inside the glyph; ``period`` in glyph pixels."""
    rgba = np.asarray(image, np.float32)
    y, x = np.mgrid[: rgba.shape[0], : rgba.shape[1]] / period
    if pattern == "striped":
        mask = ((x + 0.5 * y) % 1.0) < 0.42
    elif pattern == "spotted":
        shift = 0.5 * (np.floor(y) % 2)
        mask = ((x + shift) % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.1
    else:
        mask = (np.floor(x * 1.2) + np.floor(y * 1.2)) % 2 == 0
    weight = 0.72 * mask[..., None]
    rgb = rgba[..., :3] * (1 - weight) + contrast * weight
    return Image.fromarray(np.concatenate([rgb, rgba[..., 3:]], -1).astype(np.uint8), "RGBA")


def object_image(look: Look, font: str, rng: np.random.Generator) -> Image.Image:
    """The object of a Look as RGBA, GLYPH_PIXELS square, before placement."""
    image = glyph_image(look.glyph, font)
    if look.colour:
        image = recolour(image, look.colour)
    if look.pattern:
        dark = np.asarray(image.convert("L"), np.float32)[np.asarray(image)[..., 3] > 128].mean() > 110
        image = add_pattern(image, look.pattern, np.full(3, 45.0 if dark else 225.0), rng.uniform(15, 22))
    return image
