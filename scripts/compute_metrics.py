"""Measure generated images: image and text similarity by CLIP, with intervals, against both rails.

    python scripts/compute_metrics.py --config_path input_configs/metrics.yaml [--key value ...]

docs/metrics.md explains the keys, the protocol and what is written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from tqdm import tqdm

    from neti.training.evaluation.config import MetricsConfig
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Read the folders, judge the images, print the table and write the files."""
    config = parse_config(MetricsConfig, sys.argv[1:] if argv is None else argv)

    from neti.training.evaluation.evaluate import (
        Evaluation,  # takes seconds (torch): mistakes found above are told at once
    )
    from neti.training.evaluation.plot import write_plot

    evaluation = Evaluation(config)
    with tqdm(total=evaluation.num_features, unit="image", disable=None) as bar:
        report = evaluation.report(on_images=bar.update)
    interval = report.protocol["interval"]
    print(report.protocol_line)
    print(f"in brackets: {interval['confidence']:.0%} intervals from {interval['samples']} bootstrap resamples\n")
    print(report.table(prompts=config.print_prompts))
    for note in report.notes:
        print(f"note: {note}")
    print()
    writers = {"metrics.json": report.write_json, "metrics.csv": report.write_csv}
    for name, write in writers.items():
        write(config.output_dir / name)
        print(config.output_dir / name)
    write_plot(report, config.output_dir / "metrics.png")
    print(config.output_dir / "metrics.png")


if __name__ == "__main__":
    sys.exit(main())
