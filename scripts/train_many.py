"""Learn many concepts, one training each, on all GPUs of a machine or of a Ray cluster.

    python scripts/train_many.py --config_path many.yaml [--key value ...]

docs/scale.md explains the keys, and has recipes for SLURM and Kubernetes. Call again to go on after an interruption.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from neti.training.jobs.many_config import ManyConfig
    from neti.training.jobs.worker import Stopped
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)

SOME_FAILED = 1


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Check everything, train what is not trained yet, write the table."""
    config = parse_config(ManyConfig, sys.argv[1:] if argv is None else argv)

    from neti.training.jobs.many import ManyTrainings  # torch takes seconds: mistakes found above are reported at once

    trainings = ManyTrainings(config, lambda line: print(line, flush=True))
    print(trainings.describe(config.jobs.workers or 1), flush=True)
    if config.dry_run:
        return 0
    try:
        failures = trainings.run()
    except Stopped as stop:
        print(f"stopped; what is done is in {trainings.table}, and the same command goes on", flush=True)
        return stop.code
    print(f"done: {trainings.table}")
    if failures:
        print(f"{len(failures)} of {len(trainings.jobs)} failed; the same command tries them again", file=sys.stderr)
        return SOME_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
