"""The result of a measurement: as a table to read, as JSON that tells everything, and as CSV, one line per row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...utils.errors import UserError
from ...utils.files import require_writable, write_atomically, write_json
from ...utils.statistics import CONFIDENCE, Bootstrap, Estimate
from .rows import Kind, Row, truncation_name
from .scores import METRICS

JSON, CSV, PLOT = "metrics.json", "metrics.csv", "metrics.png"
PROTOCOL_COLUMNS = ("judge", "judge_digest", "pooling", "resizing", "placeholder", "dino")  # in every line of the CSV
PLACE_COLUMNS = ("kind", "method", "concept", "concepts", "truncation", "prompt", "images")
PLOT_MARK = "95% intervals"  # stands in the description inside every plot
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
        """One row per method or bound and truncation: that over concepts where there are several, else the only one."""
        over = {(row.kind, row.method) for row in self.rows if row.concept is None}
        totals = [row for row in self.rows if row.prompt is None]
        return [row for row in totals if (row.concept is None) == ((row.kind, row.method) in over)]

    @property
    def protocol_line(self) -> str:
        """The protocol in a few words, for people."""
        protocol = self.protocol
        dino = f", {protocol['dino']} ({protocol['dino_pooling']})" if protocol["dino"] else ""
        return (
            f"metric model {protocol['judge']} ({protocol['pooling']} features){dino}; "
            f"{protocol['resizing']} resizing; placeholder {protocol['placeholder']}"
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
            line = [row.method, concept, units(row), str(row.images)]
            if prompts:
                line.insert(NUMERIC, row.prompt or "(all)")
            lines.append(line + [_aligned_interval(row.estimates.get(metric)) for metric in metrics])
        return _aligned(lines, NUMERIC + prompts)

    def write_json(self, path: Path) -> None:
        """Everything, at full precision. Units of `truncation` are null where all are kept, and for upper bounds."""
        rows = []
        for row in self.rows:
            place = {column: getattr(row, column) for column in PLACE_COLUMNS}
            rows.append({**place, **{metric: vars(estimate) for metric, estimate in row.estimates.items()}})
        record = {"protocol": self.protocol, "sources": self.sources, "notes": list(self.notes), "rows": rows}
        write_json(record, path)

    def write_csv(self, path: Path) -> None:
        """One line per row: its place, each metric with its interval, and the protocol. An absent value is empty."""
        bounds = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*PLACE_COLUMNS, *bounds, *PROTOCOL_COLUMNS])
        for row in self.rows:
            estimates = [row.estimates.get(metric) for metric in METRICS]
            numbers = [n for e in estimates for n in ((e.mean, e.low, e.high) if e else (None, None, None))]
            place = [units(row) if column == "truncation" else getattr(row, column) for column in PLACE_COLUMNS]
            writer.writerow([*place, *numbers, *(self.protocol[key] for key in PROTOCOL_COLUMNS)])
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def bootstrap_protocol(bootstrap: Bootstrap) -> dict[str, Any]:
    """How the intervals came about."""
    return {
        "interval": {
            "confidence": CONFIDENCE,
            "method": "percentile bootstrap over images (diversity: prompts), over several concepts on two levels",
            "samples": bootstrap.samples,
            "seed": bootstrap.seed,
        }
    }


def require_replaceable(folder: Path) -> None:
    """Raise UserError if one of the files that a report writes is there and is somebody else's, or none could be."""
    require_writable(folder, "output_dir")
    ours = {JSON: _is_our_json, CSV: _is_our_csv, PLOT: _is_our_plot}
    for name, is_ours in ours.items():
        path = folder / name
        try:
            replaceable = not path.exists() or is_ours(path)
        except (OSError, ValueError, RecursionError, Image.DecompressionBombError):
            replaceable = False
        if not replaceable:
            raise UserError(f"{path} was not written by this script and stays as it is; choose another output_dir")


def units(row: Row) -> str:
    """How many hidden units the row's images were made with, for people; empty for upper bounds."""
    return "" if row.kind is Kind.bound else truncation_name(row.truncation)


def _is_our_json(path: Path) -> bool:
    return {"protocol", "rows"} <= json.loads(path.read_text(encoding="utf-8")).keys()


def _is_our_csv(path: Path) -> bool:
    return path.read_text(encoding="utf-8").startswith(",".join(PLACE_COLUMNS))


def _is_our_plot(path: Path) -> bool:
    with Image.open(path) as image:
        return PLOT_MARK in str(image.info.get("Description"))


def _aligned_interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return estimate.shown() + (" " * len(" [0.000, 0.000]") if estimate.low is None else "")


def _aligned(lines: Sequence[Sequence[str]], num_text: int) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(columns: Iterable[str]) -> str:
        padded = [
            column.ljust(width) if k < num_text else column.rjust(width)
            for k, (column, width) in enumerate(zip(columns, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    header, *body = lines
    return "\n".join([line(header), line("-" * width for width in widths), *map(line, body)])
