"""Pages of docs/ of which a part is measured, and their pictures: the rest is written by hand and stays as it is."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from ...utils.errors import UserError
from ...utils.files import write_atomically

BEGIN, END = "<!-- measured: begin, do not edit -->", "<!-- measured: end -->"
MAX_BYTES = 380_000  # of a picture: small enough for a repository


def measured_part(page: Path) -> tuple[str, str, str]:
    """A page as (before, measured part, after). UserError if there is no such page or it lacks one of the marks."""
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{page} cannot be read ({getattr(error, 'strerror', error)}); check docs_dir") from None
    before, begin, rest = text.partition(BEGIN)
    middle, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{page} has no place for the numbers: it needs the lines {BEGIN} and {END}")
    return before, middle, after


def replace_measured_part(page: Path, text: str) -> None:
    """Put `text` between the two marks of a page. UserError as `measured_part` says."""
    before, _, after = measured_part(page)
    written = f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"
    write_atomically(page, lambda file: file.write(written.encode()))


def replace_chapter(page: Path, name: str, text: str) -> None:
    """Put `text` under the heading `### name` of the measured part, in place of that chapter or after all others."""
    chapters = {}
    for chapter in re.split(r"(?m)^### ", measured_part(page)[1])[1:]:
        heading, _, rest = chapter.partition("\n")
        chapters[heading.strip()] = rest.strip()
    chapters[name] = text.strip()
    replace_measured_part(page, "\n\n".join(f"### {heading}\n\n{rest}" for heading, rest in chapters.items()))


def enlarge(image: Image.Image, side: int) -> Image.Image:
    """The image as a square of `side` pixels."""
    return image.resize((side, side), Image.Resampling.BICUBIC)


def save_jpeg(image: Image.Image, path: Path) -> None:
    """Write at the best quality that stays under MAX_BYTES."""
    for quality in range(92, 30, -6):
        encoded = io.BytesIO()
        image.save(encoded, format="JPEG", quality=quality, optimize=True)
        if encoded.tell() <= MAX_BYTES:
            break
    write_atomically(path, lambda file: file.write(encoded.getvalue()))
