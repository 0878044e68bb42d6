"""Small pieces of HTML: progress, loss curves, the state of a run. All text that people wrote is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

from .learning.runs import State, Status

WIDTH, HEIGHT, EDGE = 600, 150, 8  # of a curve, in its own units
SMOOTH = 20  # steps of the running mean: a single step's loss is mostly its timestep


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


def run_view(status: Status) -> str:
    """Where a run stands: its state, how far it is, what is left, its loss, and what went wrong."""
    share = status.step / status.last_step if status.last_step else 0.0
    words = f"{status.name} · {status.state}"
    if status.last_step and status.state is not State.queued:
        words += f" · step {status.step} of {status.last_step}"
    if status.seconds_left is not None:
        words += f" · {duration(status.seconds_left)} left"
    parts = [bar(share, words), curve(status.losses)]
    return "".join(parts) + lines([status.error] * bool(status.error)) + lines(status.warnings, "warning")


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 10 min`: as exact as a guess deserves."""
    if seconds < 90:
        return f"{max(round(seconds / 5) * 5, 5)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def curve(losses: Sequence[tuple[int, float]]) -> str:
    """The loss as a line of running means; nothing before there are two."""
    if len(losses) < 2:
        return ""
    means = []
    for end in range(1, len(losses) + 1):
        window = [loss for _, loss in losses[max(end - SMOOTH, 0) : end]]
        means.append(sum(window) / len(window))
    thin = max(len(means) // 300, 1)
    steps = [step for step, _ in losses][::thin]
    shown = means[::thin]
    low, high = min(shown), max(shown)
    points = " ".join(
        f"{EDGE + (step - steps[0]) / max(steps[-1] - steps[0], 1) * (WIDTH - 2 * EDGE):.1f},"
        f"{EDGE + (high - mean) / max(high - low, 1e-9) * (HEIGHT - 2 * EDGE):.1f}"
        for step, mean in zip(steps, shown, strict=True)
    )
    about = f"loss, mean of {SMOOTH} steps: {means[-1]:.4f} now, {means[0]:.4f} at first"
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{about}">'
        f'<polyline points="{points}"/></svg><p class="note">{about}</p>'
    )
