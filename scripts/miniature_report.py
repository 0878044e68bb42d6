"""Measure a miniature Stable Diffusion on held-out scenes and concepts; fill in the measured part of docs/miniature.md.

    python scripts/miniature_report.py --config_path input_configs/miniature_report.yaml [--key value ...]

Call again to go on after an interruption: what was measured is kept. --help lists all keys. Drawing the world needs the
font Noto Color Emoji (Debian package fonts-noto-color-emoji).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from neti.training.miniature.report.config import ReportConfig
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, and print the table."""
    config = parse_config(ReportConfig, sys.argv[1:] if argv is None else argv)

    from neti.training.miniature.report.report import write_report  # takes seconds: mistakes found above come at once

    for row in write_report(config):
        verdict = {True: "met", False: "NOT MET", None: ""}[row.met]
        print(f"{row.what:55} {row.goal:>14}  {row.value:28} {verdict}")
    print(f"done: {config.docs_dir / 'miniature.md'}")


if __name__ == "__main__":
    sys.exit(main())
