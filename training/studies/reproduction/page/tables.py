"""The page's tables, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .....utils.statistics import Bootstrap, Estimate
from ....evaluation.report import units
from ....evaluation.rows import Row
from ....evaluation.scores import DIVERSITY, IDENTITY, IMAGE, MASKED, REFERENCE, TEXT
from ..claims import BASELINES, IMAGE_ROW, NETI, Claim, against, image_difference, reading
from ..measurements import Condition, Measurements
from ..plan import Choice
from ..selection import Candidate, edges

COLUMNS = {  # metric -> the head of its column
    IMAGE: "image",
    TEXT: "text",
    DIVERSITY: "diversity",
    REFERENCE: "image, to references",
    MASKED: "image, to masked photos",
    IDENTITY: "own concept",
}


def markdown(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def shown(estimate: Estimate | None, digits: int = 3) -> str:
    """`0.812 [0.790, 0.833]`; without brackets where there is no interval."""
    return "-" if estimate is None else estimate.shown(f"{{:.{digits}f}}")


def verdicts(claims: Sequence[Claim]) -> str:
    """The claims in short."""
    return markdown(["", "claim", "verdict"], [(f"({c.letter})", c.says, f"**{c.verdict}**") for c in claims])


def findings(claim: Claim) -> str:
    """The tests of one claim."""
    lines = [
        (
            finding.what,
            "above 0" if finding.above else "below 0",
            shown(finding.estimate, finding.digits),
            finding.verdict,
        )
        for finding in claim.tests
    ]
    return markdown(["measured", "claimed", "mean and interval", "verdict"], lines)


def tuning(candidates: Sequence[Candidate], chosen: Mapping[str, Choice]) -> str:
    """A row per method and learning rate: its best number of steps; the chosen one is bold."""
    lines: list[Sequence[object]] = []
    for method, rate in dict.fromkeys((candidate.method, candidate.rate) for candidate in candidates):
        own = [c for c in candidates if (c.method, c.rate) == (method, rate)]
        good = [c for c in own if c.score is not None]
        if not good:
            lines.append((method, f"{rate:g}", "-", "-", "-", "diverged", ""))
            continue
        best = max(good, key=lambda c: (c.score, -c.step))
        is_chosen = chosen.get(method) == Choice(best.rate, best.step)
        edge = ", ".join(edges(candidates, method, chosen[method])) if is_chosen else ""
        mark = "**" if is_chosen else ""
        line = [method, f"{rate:g}", best.step, f"{best.image:.3f}", f"{best.text:.3f}", f"{best.score:.3f}"]
        lines.append((*(f"{mark}{entry}{mark}" for entry in line), edge))
    header = ["method", "learning rate", "best steps", "image similarity", "text similarity", "score", "at the edge"]
    return markdown(header, lines)


def methods(
    measured: Measurements,
    rows: Sequence[Row],
    chosen: Mapping[str, Choice],
    sizes: Mapping[str, tuple[int, int]],
    bootstrap: Bootstrap,
) -> str:
    """A row per method at its chosen budget. sizes: method -> (trained numbers here, bytes on SD v1.4)."""
    by_method = {row.method: row for row in rows if row.truncation is None}
    metrics = _measured(rows, COLUMNS)
    lines = []
    for method in measured.methods:
        estimates, choice = by_method[method].estimates, chosen[method]
        numbers, size = sizes[method]
        compared = ["", "", ""]
        if method != NETI and NETI in measured.methods:
            image, text = against(measured, method, bootstrap)
            compared = [shown(image), shown(text), reading(image, text)]
        lines.append(
            [
                method,
                f"{choice.rate:g}",
                choice.step,
                f"{numbers:,}",
                f"{size / 1000:,.0f} KB",
                *(shown(estimates.get(metric)) for metric in metrics),
                *compared,
            ]
        )
    header = ["method", "rate", "steps", "numbers trained here", "file on SD v1.4"]
    return markdown(
        [*header, *(COLUMNS[metric] for metric in metrics), "image minus neti's", "text minus neti's", "against neti"],
        lines,
    )


def steps(measured: Measurements, bootstrap: Bootstrap) -> str:
    """A row per number of steps: NeTI's image similarity, and how far it is ahead of each baseline."""
    compared = [baseline for baseline in BASELINES if NETI in measured.methods and measured.steps(baseline)]
    lines = []
    for step in measured.steps(NETI):
        own = Condition(NETI, step)
        image = bootstrap.over_groups(measured.tables([own]), lambda means: means[0, IMAGE_ROW])
        ahead = [image_difference(measured, own, Condition(baseline, step), bootstrap) for baseline in compared]
        lines.append([step, shown(image), *map(shown, ahead)])
    return markdown(["steps", "neti", *(f"neti minus {baseline}" for baseline in compared)], lines)


def others(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """Rows of no method's chosen budget (truncations, v_base alone, upper bounds), by the titles in `names`."""
    metrics = [metric for metric in _measured(rows, COLUMNS) if metric != DIVERSITY]
    lines = [
        (names[row.method], units(row), *(shown(row.estimates.get(metric)) for metric in metrics))
        for row in rows
        if row.method in names
    ]
    return markdown(["images", "units", *(COLUMNS[metric] for metric in metrics)], lines)


def _measured(rows: Sequence[Row], metrics: Iterable[str]) -> list[str]:
    return [metric for metric in metrics if any(metric in row.estimates for row in rows)]
