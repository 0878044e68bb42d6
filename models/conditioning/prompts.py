"""Prompts: the training templates, the paper's evaluation prompts, `{}` filling, prompt files and file names."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...utils.errors import UserError, shorten, shown
from ...utils.files import read_text

SLOT = "{}"  # stands for the concept's placeholder wherever a person writes a prompt
NAME = re.compile(r"[^\W\d][\w-]*")  # of a concept in `{name}`: begins with a letter
_BRACES = re.compile(r"\{([^{}]*)\}")
_UNITS = re.compile(r"[0-9]{1,9}")
_OPTIONS = (  # of Midjourney, kohya's scripts and AUTOMATIC1111's; after a dash of two signs any other word is prose
    "[nwhdlsgtbcvqpr]|am|ow|oh|nw|nh|ct|cl|of|ss|ar|aspect|no|version|quality|stylize|style|chaos|seed|subseed|stop|"
    "tile|tiling|niji|iw|sref|cref|cw|sw|weird|raw|repeat|fast|relax|turbo|video|hd|uplight|upbeta|steps|width|height|"
    "prompt|negative[-_]prompt|cfg[-_]scale|sampler[-_](?:name|index)|batch[-_](?:size|count)|n[-_]iter"
)
_OTHER_TOOLS = (  # what people write for other tools, and a text encoder would read as letters
    (
        rf"(?i)(^|\s)--(?:{_OPTIONS})(?=[\s=]|$)",
        "an option of other tools: seeds, steps, sizes, negative prompts are keys here",
    ),
    (  # (cat:1.5), and with a space what looks like a weight: `(chapter: 3)` and `(rated: 4.5)` are prose
        r"[(\[].*(?:[^\s\d]|[^\W\d]\d{1,9})\s*:(?:[+-]?\d{0,6}\.?\d{1,6}|\s+[01]\.\d{1,4})\s*[)\]]",
        "a weight of other tools: there are none here",
    ),
    (r"\(\([^()]*\)\)|\)\d{1,6}\.\d|[)}](\++|--+)(?=[\s,.]|$)", "a weight of other tools: there are none here"),
    (r"\[[^\[\]]*\|[^\[\]]*\]|\\[()\[\]]", "a choice or an escape of other tools: write the words themselves"),
    (r"(?i)<(lora|lyco|hypernet|hypernetwork|ti):|\bembedding:\S", "a file of other tools: concepts are keys here"),
)

# The ImageNet templates of Textual Inversion (Gal et al. 2022), for objects ...
OBJECT_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)

# ... and for styles. Two of the 19 stand twice in the list, there as here: they are drawn twice as often.
STYLE_TEMPLATES = (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a cropped painting in the style of {}",
    "a good painting in the style of {}",
    "a close-up painting in the style of {}",
    "a rendition in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
)

# Short ones that say nothing but that there is a photo of it (Perfusion)
SHORT_TEMPLATES = (
    "a photo of a {}",
    "a good photo of a {}",
    "the photo of a {}",
    "a good photo of the {}",
    "image of a {}",
    "image of the {}",
    "A photograph of {}",
    "A {} shown in a photo",
    "A photo of {}",
)

# What the paper evaluates with, and the four it watches during training.
PAPER_PROMPTS = (
    "A photo of a {}",
    "A photo of {} in the jungle",
    "A photo of {} on a beach",
    "A photo of {} in Times Square",
    "A photo of {} in the moon",
    "A painting of {} in the style of Monet",
    "Oil painting of {}",
    "A Marc Chagall painting of {}",
    "A manga drawing of {}",
    "A watercolor painting of {}",
    "A statue of {}",
    "App icon of {}",
    "A sand sculpture of {}",
    "Colorful graffiti of {}",
    "A photograph of two {} on a table",
)
VALIDATION_PROMPTS = (
    "A photo of a {}",
    "A photo of a {} on a beach",
    "App icon of {}",
    "A painting of {} in the style of Monet",
)

MAX_PROMPT = 2000  # characters; text encoders read 77 tokens
MAX_PLACEHOLDER = 100  # characters; it stands in prompts, messages and the names of files
MAX_NAME_BYTES = 120  # file systems allow 255 (some 143); what is appended to a name must fit too
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u2028\u2029]')
_WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}


class Slot(NamedTuple):
    """One place for a concept in a prompt.

    text: as it stands there. name: of the concept, `{}` itself where it stands alone. units: hidden units that are kept
    of it (None: all that the call keeps).
    """

    text: str
    name: str
    units: int | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt, parsed once: `text` with `{}`, `{name}` or `{name:16}` where concepts go, and those slots."""

    text: str
    slots: tuple[Slot, ...]

    @classmethod
    def parse(cls, text: str, placeholder: str = "") -> Prompt:
        """placeholder: the word that people write for the concept that is `{}`, such as `<toy>`; a word of its own.

        Raises UserError for other words in braces, and for what other tools read as options or weights; braces without
        a letter are ordinary text.
        """
        if len(text) > MAX_PROMPT:
            raise UserError(
                f"the prompt {shown(text)} has {len(text)} characters; at most {MAX_PROMPT} are read here, and some "
                "hundred by the text encoder"
            )
        for pattern, what in _OTHER_TOOLS:
            if match := re.search(pattern, text):
                raise UserError(f"the prompt {shown(text)} has {shown(match[0].strip())}, {what}; take it out")
        if placeholder:
            text = re.sub(placeholder_pattern(placeholder), SLOT, text)
        found = []
        for match in _BRACES.finditer(text):
            name, colon, units = match[1].partition(":")
            if match[0] == SLOT or (NAME.fullmatch(name) and (not colon or _UNITS.fullmatch(units))):
                found.append(Slot(match[0], name or SLOT, int(units) if colon else None))
            elif any(letter.isalpha() for letter in match[1]):
                raise UserError(
                    f"the prompt {shown(text)} has {shorten(match[0])}; a concept is written {{name}}, or {{name:16}} "
                    "for its first 16 hidden units"
                )
        return cls(text, tuple(dict.fromkeys(found)))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the concepts, in order, each once."""
        return tuple(dict.fromkeys(slot.name for slot in self.slots))


def placeholder_problem(word: str) -> str | None:
    """Why `word` cannot stand for a concept in prompts, whatever the model; None if it can."""
    if not word or any(letter.isspace() or not letter.isprintable() for letter in word):
        return "must be one word without spaces, such as '<toy>'"
    if "{" in word or "}" in word:
        return "must have no braces, with which prompts name concepts; choose one such as '<toy>'"
    if len(word) == 1:
        return "is one character, which every vocabulary knows as a word; choose one such as '<toy>'"
    if len(word) > MAX_PLACEHOLDER:
        return f"has more than {MAX_PLACEHOLDER} characters; choose one such as '<toy>'"
    return None


def placeholder_pattern(placeholder: str) -> str:
    """A regular expression that finds the placeholder as a word of its own: `zorg`, and not in `zorgish`."""
    before = r"(?<!\w)" if re.match(r"\w", placeholder) else ""
    after = r"(?!\w)" if re.search(r"\w$", placeholder) else ""
    return before + re.escape(placeholder) + after


def read_prompts(path: Path | str) -> list[str]:
    """The prompts in a text file, one per line; empty lines are skipped.

    Raises UserError for a missing, unreadable or empty file, and for one that is not UTF-8 text.
    """
    prompts = [line.strip() for line in read_text(path, "prompts file").splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"the prompts file {path} is empty; write one prompt per line")
    return prompts


def safe_name(prompt: str) -> str:
    """A file or folder name for a prompt, good on Linux, macOS and Windows; up to 120 bytes of UTF-8.

    A prompt that is already a good name is returned unchanged. When anything had to be changed, eight hex digits of
    the prompt's SHA-256 are appended, so two different prompts never share a name (up to letter case, which macOS and
    Windows ignore). Give it the prompt as the user wrote it: `{}` is fine in a name, the `<` and `>` of a filled-in
    placeholder are not.
    """
    name = unicodedata.normalize("NFC", prompt.encode("utf-8", "replace").decode())  # macOS would normalise on its own
    name = _UNSAFE.sub("_", name).strip(" .")  # Windows drops trailing dots and spaces; a leading dot hides the file
    if name.split(".")[0].rstrip().upper() in _WINDOWS_DEVICES:
        name = f"_{name}"
    if name == prompt and 0 < len(name.encode()) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    short = name.encode()[: MAX_NAME_BYTES - len(digest) - 1].decode(errors="ignore").rstrip(" .")
    return f"{short or 'prompt'}-{digest}"
