"""Measure generated images: image and text similarity by CLIP, with intervals, beside their upper bounds.

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
    """Read the folders, score the images, print the table and write the files."""
    config = parse_config(MetricsConfig, sys.argv[1:] if argv is None else argv)

    # torch takes seconds: mistakes found above are reported at once
    from neti.training.evaluation.evaluate import Evaluation
    from neti.training.evaluation.plot import write_plot
    from neti.training.evaluation.report import CSV, JSON, PLOT

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
    writers = {JSON: report.write_json, CSV: report.write_csv, PLOT: lambda path: write_plot(report, path)}
    for name, write in writers.items():
        write(config.output_dir / name)
        print(config.output_dir / name)


if __name__ == "__main__":
    sys.exit(main())
