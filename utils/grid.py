"""A grid of images that a person looks at: labels on rows and columns, a title, white margins."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .errors import shorten

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
MAX_LABEL = 400  # characters; a prompt that a text encoder reads whole is shorter
INK, SOFT_INK, PAPER = "#1a1a1a", "#4a4a4a", "#ffffff"


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
) -> Image.Image:
    """All images in one: row labels at the left, column labels on top, the title above; each may be left out.

    The text grows with the tiles (64 to 512 px and beyond) and wraps instead of being cut. Rows may differ in length
    and tiles in size; each tile keeps its pixels and is centred in its cell. ValueError if labels do not fit the rows.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("a grid needs at least one image")
    if row_labels and len(row_labels) != len(rows):
        raise ValueError(f"{len(row_labels)} row labels for {len(rows)} rows")
    if column_labels and len(column_labels) != columns:
        raise ValueError(f"{len(column_labels)} column labels for {columns} columns")

    tile_width = max(tile.width for row in rows for tile in row)
    size = min(max(tile_width // 18, 12), 28)
    gap, margin = max(size // 2 - 2, 4), size + size // 2
    font, title_font = _font(size), _font(size * 3 // 2)

    left_texts = [_wrap(label, font, max(tile_width // 2, 11 * size)) for label in row_labels] or [""] * len(rows)
    top_texts = [_wrap(label, font, tile_width) for label in column_labels]
    left_width = max(_size(text, font)[0] for text in left_texts)
    left = margin + (left_width + size if left_width else 0)
    width = left + columns * tile_width + (columns - 1) * gap + margin
    title_text = _wrap(title, title_font, max(width, 24 * size) - 2 * margin)
    width = max(width, 2 * margin + _size(title_text, title_font)[0])

    heights = [
        max(max((tile.height for tile in row), default=0), _size(text, font)[1])
        for row, text in zip(rows, left_texts, strict=True)
    ]
    title_height = _size(title_text, title_font)[1]
    top_height = max((_size(text, font)[1] for text in top_texts), default=0)
    y = margin + (title_height + size if title_height else 0)
    top = y + (top_height + size // 2 if top_height else 0)

    grid = Image.new("RGB", (width, top + sum(heights) + gap * (len(rows) - 1) + margin), PAPER)
    draw = ImageDraw.Draw(grid)
    _write(draw, (margin, margin), title_text, title_font, INK, "left")
    for column, text in enumerate(top_texts):
        text_width, text_height = _size(text, font)
        x = left + column * (tile_width + gap) + (tile_width - text_width) // 2
        _write(draw, (x, y + top_height - text_height), text, font, SOFT_INK, "center")
    y = top
    for row, text, height in zip(rows, left_texts, heights, strict=True):
        text_width, text_height = _size(text, font)
        _write(draw, (left - size - text_width, y + (height - text_height) // 2), text, font, SOFT_INK, "right")
        for column, tile in enumerate(row):
            x = left + column * (tile_width + gap) + (tile_width - tile.width) // 2
            grid.paste(tile, (x, y + (height - tile.height) // 2))
        y += height + gap
    return grid


@functools.cache
def _font(size: int) -> Font:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)  # knows far more scripts than Pillow's own font
    except OSError:
        return ImageFont.load_default(size)


def _wrap(text: str, font: Font, width: int) -> str:
    """The text in lines of at most `width` pixels, broken at spaces, or inside a word that is too long for a line."""
    lines: list[str] = []
    for paragraph in shorten(text, MAX_LABEL).splitlines():
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") <= width:
                line = f"{line} {word}"
                continue
            if line:
                lines.append(line)
            while font.getlength(word) > width and len(word) > 1:
                fits = next((n for n in range(len(word) - 1, 1, -1) if font.getlength(word[:n]) <= width), 1)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    return "\n".join(lines)


def _line_height(font: Font) -> int:
    _, top, _, bottom = font.getbbox("Ág")
    return round((bottom - min(top, 0)) * 1.15)


def _size(text: str, font: Font) -> tuple[int, int]:
    """Width and height of a wrapped text in pixels; an empty text takes no room."""
    lines = text.splitlines()
    return max((round(font.getlength(line)) for line in lines), default=0), len(lines) * _line_height(font)


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, font: Font, ink: str, align: str) -> None:
    width, _ = _size(text, font)
    for number, line in enumerate(text.splitlines()):
        slack = width - round(font.getlength(line))
        x = at[0] + {"left": 0, "center": slack // 2, "right": slack}[align]
        draw.text((x, at[1] + number * _line_height(font)), line, fill=ink, font=font)
