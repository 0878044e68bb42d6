"""What people say about a scene: many wordings, each fact named about half of the time.

A frozen model can be personalised only along directions that its captions taught it, so the look (colour, pattern,
size, position, specific name) is named often, and left out just as often so that "a cat" alone does not fix its look.
"""

from __future__ import annotations

import numpy as np

from ....models.conditioning.prompts import OBJECT_TEMPLATES
from .objects import COLOURS
from .world import Scene

Rng = np.random.Generator

PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("on a plain background", "in a studio"),
    "jungle": ("in the jungle", "in a green jungle", "in the rainforest"),
    "beach": ("on a beach", "on the beach", "at the seaside"),
    "city": ("in Times Square", "in the city", "on a city street"),
    "moon": ("in the moon", "on the moon", "in space on the moon"),
    "table": ("on a table", "on top of a wooden table"),
    "snow": ("in the snow", "on a snowy day"),
    "desert": ("in the desert", "in a sandy desert"),
    "sea": ("under the sea", "underwater", "in the ocean"),
    "night": ("at night", "under the night sky"),
}
# most say "in the style of" too: a style to be personalised is spoken of in those words
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "photo": ("A photo of {}", "A photograph of {}", "{}"),
    "monet": ("A painting of {} in the style of Monet", "An impressionist painting of {}", "A Monet painting of {}"),
    "oil": ("Oil painting of {}", "An oil painting of {}", "A painting of {} in the style of oil"),
    "chagall": ("A Marc Chagall painting of {}", "A painting of {} in the style of Chagall"),
    "manga": ("A manga drawing of {}", "A black and white manga of {}", "A drawing of {} in the style of manga"),
    "watercolor": ("A watercolor painting of {}", "A watercolor of {}", "A painting of {} in the style of watercolor"),
    "statue": ("A statue of {}", "A stone statue of {}"),
    "icon": ("App icon of {}", "An app icon of {}", "A picture of {} in the style of an app icon"),
    "sand": ("A sand sculpture of {}", "A sculpture of {} made of sand"),
    "graffiti": ("Colorful graffiti of {}", "Graffiti of {} on a wall", "A picture of {} in the style of graffiti"),
}
CENTRED = ("icon", "statue")  # styles that fix the object's place and size
COLOURLESS = ("statue", "sand", "manga")  # styles in which a colour word would be a lie


def _noun(scene: Scene, rng: Rng, name: str | None = None) -> str:
    """The object as words without article, at most one colour, pattern, size word and one name; or ``name`` for all."""
    if name is not None:
        return name
    look, words = scene.look, []
    if scene.count == 1 and scene.style not in CENTRED and rng.random() < 0.5:
        words += ["small"] if scene.size < 0.55 else ["big"] if scene.size > 0.8 else []
    if look.pattern and rng.random() < 0.75:
        words.append(look.pattern)
    if look.colour and scene.style not in COLOURLESS and rng.random() < 0.75:
        words.append(look.colour)
    natural = look.colour is None and scene.style not in COLOURLESS
    honest = natural or not any(colour in look.name for colour in COLOURS)  # a recoloured "brown bear" is just a bear
    return " ".join([*words, look.name if rng.random() < 0.5 and honest else look.category])


def full_noun(scene: Scene) -> str:
    """All that words can say of the object: pattern, colour where the style has any, and its own name."""
    look = scene.look
    colour = None if scene.style in COLOURLESS else look.colour
    honest = look.colour is None or not any(known in look.name for known in COLOURS)
    return " ".join(word for word in (look.pattern, colour, look.name if honest else look.category) if word)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _plural(noun: str) -> str:
    return noun if noun.endswith(("fish", "beer", "milk")) else noun + ("es" if noun.endswith(("s", "sh")) else "s")


def _subject(scene: Scene, rng: Rng, name: str | None) -> str:
    noun = _noun(scene, rng, name)
    if scene.count == 2:
        return f"two {_plural(noun) if rng.random() < 0.6 else noun}"
    if rng.random() < 0.35:  # the paper's prompts name the concept without an article
        return noun
    return f"{_article(noun)} {noun}" if rng.random() < 0.7 else f"the {noun}"


def _position(scene: Scene, rng: Rng) -> str:
    if scene.count == 2 or scene.style in CENTRED or scene.size > 0.75 or rng.random() < 0.5:
        return ""
    if abs(scene.x) > 0.6:
        return " on the left" if scene.x < 0 else " on the right"
    return ""


def _from_template(scene: Scene, rng: Rng, name: str | None) -> str | None:
    """One of the training recipe's 27 object templates, where it tells the truth."""
    template = str(rng.choice(OBJECT_TEMPLATES))
    if scene.light and rng.random() < 0.8:
        template = f"a {scene.light} photo of the {{}}"
    elif any(light in template and light != scene.light for light in ("dark", "bright")):
        return None
    if "rendition" in template or "rendering" in template or scene.count == 2:
        return None
    if ("close-up" in template or "cropped" in template) and scene.size < 0.75:
        return None
    if ("small" in template and scene.size > 0.6) or ("large" in template and scene.size < 0.6):
        return None
    return template.format(_noun(scene, rng, name))


def caption(scene: Scene, rng: Rng, name: str | None = None) -> str:
    """One of the many true captions of a scene; with ``name``, the object is called that and nothing else."""
    if scene.style == "photo" and rng.random() < 0.45:
        text = _from_template(scene, rng, name)
        if text is not None:
            named = scene.place != "plain" and rng.random() < 0.6
            return f"{text} {rng.choice(PLACE_WORDS[scene.place])}" if named else text
    words = STYLE_WORDS[scene.style]
    text = str(words[0] if rng.random() < 0.55 else rng.choice(words)).format(_subject(scene, rng, name))
    tell_place = 0.25 if scene.place == "plain" and scene.style == "photo" else 0.9 if scene.style == "photo" else 0.6
    if (scene.place != "plain" or scene.style == "photo") and rng.random() < tell_place:
        text += f" {rng.choice(PLACE_WORDS[scene.place])}"
    return text + _position(scene, rng)


def full_caption(scene: Scene) -> str:
    """The caption of the reports: style, place, count and category, nothing else."""
    category = scene.look.category
    subject = f"two {_plural(category)}" if scene.count == 2 else f"{_article(category)} {category}"
    text = STYLE_WORDS[scene.style][0].format(subject)
    return text if scene.place == "plain" else f"{text} {PLACE_WORDS[scene.place][0]}"
