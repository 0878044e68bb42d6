"""Train an ELITE encoder, which turns one picture into a concept: stage global first, then stage local.

    python scripts/train_elite.py --config_path input_configs/elite_global.yaml [--key value ...]
    python scripts/train_elite.py --config_path input_configs/elite_local.yaml [--key value ...]

Go on with a run that was stopped: add `--resume latest`. All keys: `--help`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from neti.training.elite.config import EncoderConfig
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Check the configuration, then train."""
    config = parse_config(EncoderConfig, sys.argv[1:] if argv is None else argv)
    from neti.training.elite.launch import launch  # after the checks, which need none of the seconds torch takes

    return launch(config)


if __name__ == "__main__":
    sys.exit(main())
