"""A bar, a line, a list: what every tab shows."""

from __future__ import annotations

import html
from collections.abc import Sequence


def bar(share: float, text: str) -> str:
    """A progress bar with a line of text; share 0..1."""
    return f'<div class="bar"><i style="width:{100 * min(share, 1):.1f}%"></i></div>{note(text)}'


def note(text: str) -> str:
    """One quiet line."""
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def lines(texts: Sequence[str], kind: str = "problem") -> str:
    """A list of lines, such as what is wrong with photos."""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">{items}</ul>' if texts else ""


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 10 min`: as exact as a guess deserves."""
    if seconds < 90:
        return f"{max(round(seconds / 5) * 5, 5)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
