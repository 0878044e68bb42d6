"""Speed and memory beside the frozen model's own: print ratios, fill the measured part of docs/performance.md.

    python scripts/benchmark.py --config_path input_configs/benchmark.yaml [--key value ...]

--help lists all keys. Nothing is downloaded: the large model is Stable Diffusion v1.4's architecture, randomly filled.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from neti.training.studies.benchmark.config import BenchmarkConfig
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print each table when it is there."""
    config = parse_config(BenchmarkConfig, sys.argv[1:] if argv is None else argv)

    from neti.training.studies.benchmark.report import write_benchmark  # takes seconds: mistakes found above come first

    for title, rows in write_benchmark(config, Path(__file__).parent):
        print(f"\n{title}")
        for row in rows:
            aside = [row.counted and f"counted {row.counted}", row.wanted and f"wanted {row.wanted}", row.note]
            print(f"  {row.what}\n      {row.value or '-':28} {'; '.join(filter(None, aside))}", flush=True)
    print(f"done: {config.work_dir / config.name}.json, {config.docs_dir / 'performance.md'}")


if __name__ == "__main__":
    sys.exit(main())
