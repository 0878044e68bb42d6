"""Test the paper's claims against tuned baselines, and write docs/reproduction.md.

    python scripts/reproduce_paper.py --config_path input_configs/reproduction_miniature.yaml [--key value ...]

--dry_run shows the plan's size and time, --jobs.workers 2 shares it between two processes, --jobs.ray auto among the
machines of a Ray cluster. Call again to go on after an interruption: what is finished is kept.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

try:
    from neti.training.jobs.worker import Stopped
    from neti.training.studies.reproduction.config import ReproductionConfig
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Check the plan, print it, do what is not done yet."""
    argv = sys.argv[1:] if argv is None else argv
    config = parse_config(ReproductionConfig, argv)

    # torch takes seconds: mistakes found above are reported at once
    from neti.training.studies.reproduction.check import check_plan, describe_plan
    from neti.training.studies.reproduction.reproduce import Reproduction

    check_plan(config)
    print(describe_plan(config, config.jobs.workers or 1), flush=True)
    if config.dry_run:
        return 0
    try:
        page = Reproduction(config, lambda line: print(line, flush=True)).run(
            shlex.join(["python", "scripts/reproduce_paper.py", *argv])
        )
    except Stopped as stop:
        print("stopped; what is finished is kept, and the same command goes on", flush=True)
        return stop.code
    if page is not None:
        print(f"done: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
