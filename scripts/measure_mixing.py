"""Measure style mixing and several concepts in one image on a miniature; fill in the numbers of both pages.

    python scripts/measure_mixing.py --config_path input_configs/measure_mixing.yaml [--key value ...]

Call again to go on after an interruption: finished images and pairs are kept. --help lists all keys. Drawing the world
needs the font Noto Color Emoji (Debian package fonts-noto-color-emoji).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from neti.training.studies.mixing.config import MixingConfig
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print where it was written."""
    config = parse_config(MixingConfig, sys.argv[1:] if argv is None else argv)

    from neti.training.studies.mixing.report import write_mixing  # takes seconds: mistakes found above come at once

    for path in write_mixing(config):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
