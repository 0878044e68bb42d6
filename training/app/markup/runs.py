"""Where a run stands, and its loss."""

from __future__ import annotations

from collections.abc import Sequence

from ..learning.runs import State, Status
from .pieces import bar, duration, lines

WIDTH, HEIGHT, EDGE = 600, 150, 8  # of a curve, in its own units
SMOOTH = 20  # steps of the running mean: a single step's loss is mostly its timestep
POINTS = 300  # of a curve at most


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


def curve(losses: Sequence[tuple[int, float]]) -> str:
    """The loss as a line of running means; nothing before there are two."""
    if len(losses) < 2:
        return ""
    means = []
    for end in range(1, len(losses) + 1):
        window = [loss for _, loss in losses[max(end - SMOOTH, 0) : end]]
        means.append(sum(window) / len(window))
    thin = max(len(means) // POINTS, 1)
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
