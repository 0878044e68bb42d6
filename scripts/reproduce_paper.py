"""Test the paper's claims against tuned baselines, and write docs/reproduction.md.

    python scripts/reproduce_paper.py --config_path input_configs/reproduction_miniature.yaml [--key value ...]
    accelerate launch --multi_gpu --num_processes 2 scripts/reproduce_paper.py --config_path ...   # or on CPU processes

--dry_run tells the plan's size and time. Call again to go on after an interruption: what is finished is kept. Processes
share the work through work_dir, so the same command may also be started several times, or on several machines.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

try:
    from neti.training.studies.reproduction.plan_config import ReproductionConfig
    from neti.training.studies.reproduction.processes import leave_the_group
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import EXIT_INTERRUPTED, exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Check the plan, tell it, do what is not done yet."""
    argv = sys.argv[1:] if argv is None else argv
    config = parse_config(ReproductionConfig, argv)
    process = leave_the_group()

    from neti.training.studies.reproduction.plan_text import check_plan, describe_plan  # takes seconds (torch)
    from neti.training.studies.reproduction.reproduce import Reproduction
    from neti.training.studies.reproduction.workshop import Stopped

    check_plan(config)
    if process.is_first:
        print(describe_plan(config, process.count), flush=True)
    if config.dry_run:
        return 0

    def tell(line: str) -> None:
        line = f"({process.number}) {line}" if process.count > 1 else line
        print(f"{line}\n", end="", flush=True)  # in one write: processes share the terminal

    try:
        page = Reproduction(config, process, tell).run(shlex.join(["python", "scripts/reproduce_paper.py", *argv]))
    except (KeyboardInterrupt, Stopped) as stop:
        print("stopped; what is finished is kept, and the same command goes on", flush=True)
        return stop.code if isinstance(stop, Stopped) else EXIT_INTERRUPTED
    if page is not None:
        print(f"done: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
