"""The page's tables, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .....utils.statistics import Estimate
from ....evaluation.report import units
from ....evaluation.rows import Row
from ....evaluation.scores import DIVERSITY, IDENTITY, IMAGE, MASKED, REFERENCE, TEXT
from ..claims import BASELINES, TEXT_ROW, Claim, Claims, reading
from ..config import ReproductionConfig
from ..measurements import Condition
from ..plan import NETI, Choice
from ..selection import Candidate, edges

COLUMNS = {  # metric -> the head of its column
    REFERENCE: "likeness to fresh photos",
    IMAGE: "likeness to the photos",
    TEXT: "text similarity",
    DIVERSITY: "diversity",
    MASKED: "likeness to masked photos",
    IDENTITY: "own concept",
}


def markdown(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def shown(estimate: Estimate | None, digits: int = 3) -> str:
    """`0.812 [0.790, 0.833]`; without brackets where there is no interval."""
    return "-" if estimate is None else estimate.shown(f"{{:.{digits}f}}")


def verdicts(claims: Mapping[str, Sequence[Claim]]) -> str:
    """The claims in short. claims: by what -> the claims by it, those that decide first."""
    first, *others = claims.values()
    heads = [f"by {measure}" for measure in claims]
    lines = [
        (f"({c.letter})", c.says, f"**{c.verdict}**", *(o[k].verdict for o in others)) for k, c in enumerate(first)
    ]
    return markdown(["", "claim", *heads], lines)


def findings(claims: Mapping[str, Claim]) -> str:
    """The tests of one claim, by each measure."""
    first, *others = claims.values()
    lines = []
    for number, finding in enumerate(first.tests):
        found = [finding, *(other.tests[number] for other in others)]
        side = "above 0" if finding.above else "below 0"
        lines.append([finding.what, side, *(f"{shown(f.estimate, f.digits)} {f.verdict}" for f in found)])
    return markdown(["measured", "claimed", *(f"by {measure}" for measure in claims)], lines)


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


def methods(rows: Sequence[Row], claims: Claims) -> str:
    """A row per method at its budget; differences from NeTI are paired. claims: by the likeness that decides."""
    by_method = {row.method: row for row in rows if row.truncation is None}
    metrics = _measured(rows, COLUMNS)
    lines = []
    for method in [name for name in claims.measured.methods if name in by_method]:
        row, own, neti = by_method[method], Condition(method), Condition(NETI)
        compared = ["", "", "", ""]
        if method != NETI:
            likeness, text = claims.difference(own, neti), claims.difference(own, neti, TEXT_ROW)
            compared = [*map(shown, (likeness, text, claims.above_curve(own))), reading(likeness, text)]
        lines.append([method, row.concepts, *(shown(row.estimates.get(metric)) for metric in metrics), *compared])
    differences = ["likeness minus neti's", "text minus neti's", "likeness above neti's curve", "against neti"]
    return markdown(["method", "concepts", *(COLUMNS[metric] for metric in metrics), *differences], lines)


def settings(
    config: ReproductionConfig, chosen: Mapping[str, Choice], sizes: Mapping[str, tuple[int, int | None]]
) -> str:
    """What makes each method. sizes: method -> (trained numbers here, bytes on SD v1.4), of those that were trained."""
    lines: list[Sequence[object]] = []
    for method in config.method_plans:
        numbers, size = sizes.get(method.name, (0, None))
        budget = [f"{chosen[method.name].rate:g}", chosen[method.name].step]
        sized = [f"{numbers:,}" if numbers else "", f"{size / 1000:,.0f} KB" if size else ""]
        lines.append([method.name, _code(method.arguments), *budget, *sized])
    for drawn in config.drawn_plans:
        words = [
            f"{key}={value}" for key, value in (*drawn.settings, ("truncation", drawn.truncation), ("step", drawn.step))
        ]
        words = [word for word in words if not word.endswith("=None")]
        lines.append([drawn.name, f"{drawn.method}, drawn with {_code(words)}", "", "", "", ""])
    header = ["method", "made by", "rate", "steps", "numbers trained here", "file on SD v1.4"]
    return markdown(header, lines)


def steps(claims: Claims) -> str:
    """A row per number of steps: NeTI's likeness, and how far it is ahead of each baseline."""
    measured = claims.measured
    compared = [baseline for baseline in BASELINES if measured.steps(baseline)]
    lines = []
    for step in measured.steps(NETI):
        own = Condition(NETI, step)
        ahead = [claims.difference(own, Condition(baseline, step)) for baseline in compared]
        lines.append([step, shown(claims.mean(own)), *map(shown, ahead)])
    return markdown(["steps", "neti", *(f"neti minus {baseline}" for baseline in compared)], lines)


def others(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """Rows of no method's chosen budget (truncations, v_base alone, upper bounds), by the titles in `names`."""
    metrics = [metric for metric in _measured(rows, COLUMNS) if metric != DIVERSITY]
    lines = [
        (names[row.method], row.concepts, units(row), *(shown(row.estimates.get(metric)) for metric in metrics))
        for row in rows
        if row.method in names
    ]
    return markdown(["images", "concepts", "units", *(COLUMNS[metric] for metric in metrics)], lines)


def _code(words: Sequence[str]) -> str:
    return f"`{' '.join(words)}`" if words else ""


def _measured(rows: Sequence[Row], metrics: Iterable[str]) -> list[str]:
    return [metric for metric in metrics if any(metric in row.estimates for row in rows)]
