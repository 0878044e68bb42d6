"""The result of a measurement: as a table to read, as JSON that tells everything, and as CSV, one line per row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils.image_files import write_atomically, write_json
from .rows import Kind, Row, truncation_name
from .scores import METRICS, Estimate

PROTOCOL_COLUMNS = ("judge", "judge_digest", "pooling", "resizing", "placeholder", "dino")  # told in every CSV line
NUMERIC = 3  # columns of the table before it are text, aligned to the left


@dataclass(frozen=True)
class Report:
    """Everything one call measured.

    protocol: the choices that decide the numbers; sources: what was read; notes: what a reader must know.
    """

    protocol: Mapping[str, Any]
    sources: Mapping[str, Any]
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def headline(self) -> list[Row]:
        """One row per method or rail and truncation: that over concepts where there are several, else the only one."""
        over = {(row.kind, row.method) for row in self.rows if row.concept is None}
        totals = [row for row in self.rows if row.prompt is None]
        return [row for row in totals if (row.concept is None) == ((row.kind, row.method) in over)]

    @property
    def protocol_line(self) -> str:
        """The protocol in a few words, for people."""
        told = self.protocol
        dino = f", {told['dino']} ({told['dino_pooling']})" if told["dino"] else ""
        return (
            f"judge {told['judge']} ({told['pooling']} features){dino}; {told['resizing']} resizing; "
            f"placeholder {told['placeholder']}"
        )

    def table(self, prompts: bool = False) -> str:
        """The rows as aligned text; with `prompts`, those of single prompts too."""
        rows = [row for row in self.rows if prompts or row.prompt is None]
        metrics = [metric for metric in METRICS if any(metric in row.estimates for row in rows)]
        header = ["method", "concept", "units", "images", *(metric.replace("_", " ") for metric in metrics)]
        if prompts:
            header.insert(NUMERIC, "prompt")
        lines = [header]
        for row in rows:
            concept = row.concept or f"({row.concepts} concepts)"
            line = [row.method, concept, _units(row), str(row.images)]
            if prompts:
                line.insert(NUMERIC, row.prompt or "(all)")
            lines.append(line + [_cell(row.estimates.get(metric)) for metric in metrics])
        return _aligned(lines, NUMERIC + prompts)

    def write_json(self, path: Path) -> None:
        """Everything, at full precision. Units of `truncation` are null where all are kept, and for rails."""
        rows = []
        for row in self.rows:
            place = {
                "kind": row.kind.value,
                "method": row.method,
                "concept": row.concept,
                "concepts": row.concepts,
                "truncation": row.truncation,
                "prompt": row.prompt,
                "images": row.images,
            }
            rows.append({**place, **{metric: vars(estimate) for metric, estimate in row.estimates.items()}})
        record = {"protocol": self.protocol, "sources": self.sources, "notes": list(self.notes), "rows": rows}
        write_json(record, path)

    def write_csv(self, path: Path) -> None:
        """One line per row: its place, each metric with its interval, and the protocol. An absent value is empty."""
        place = ("kind", "method", "concept", "concepts", "truncation", "prompt", "images")
        bounds = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*place, *bounds, *PROTOCOL_COLUMNS])
        for row in self.rows:
            estimates = [row.estimates.get(metric) for metric in METRICS]
            numbers = [n for e in estimates for n in ((e.mean, e.low, e.high) if e else (None, None, None))]
            where = [row.kind, row.method, row.concept, row.concepts, _units(row), row.prompt, row.images]
            writer.writerow([*where, *numbers, *(self.protocol[key] for key in PROTOCOL_COLUMNS)])
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def _units(row: Row) -> str:
    return "" if row.kind is Kind.rail else truncation_name(row.truncation)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if estimate.low is None:
        return f"{estimate.mean:.3f}" + " " * len(" [0.000, 0.000]")
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _aligned(lines: Sequence[Sequence[str]], num_text: int) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Iterable[str]) -> str:
        padded = [
            cell.ljust(width) if k < num_text else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    header, *body = lines
    return "\n".join([line(header), line("-" * width for width in widths), *map(line, body)])
