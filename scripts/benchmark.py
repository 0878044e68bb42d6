"""Speed and memory beside the frozen model's own: print ratios, write docs/performance.md.

    python scripts/benchmark.py --config_path input_configs/benchmark.yaml [--key value ...]

--help lists all keys. Nothing is downloaded: the large model is Stable Diffusion v1.4's architecture, randomly filled.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from neti.training.studies.benchmark.config import BenchmarkConfig
    from neti.training.studies.benchmark.report import write_benchmark
    from neti.training.studies.benchmark.rows import Row
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print each table when it is there."""
    config = parse_config(BenchmarkConfig, sys.argv[1:] if argv is None else argv)
    write_benchmark(config, Path(__file__).parent, show)
    print(f"done: {config.work_dir / config.name}.json, {config.docs_dir / 'performance.md'}")


def show(title: str, rows: Sequence[Row]) -> None:
    """One table."""
    print(f"\n{title}")
    for row in rows:
        told = [f"counted {row.counted}" if row.counted else "", f"wanted {row.wanted}" if row.wanted else "", row.note]
        print(f"  {row.what}\n      {row.value or '-':28} {'; '.join(filter(None, told))}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
