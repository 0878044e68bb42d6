"""Make a concept of one picture, without training (ELITE), as a small file that is used like any other concept.

    python scripts/encode.py --image photo.png --mask mask.png
    python scripts/inference.py --concept photo.safetensors --prompts "A photo of a {} on a beach"

docs/elite.md explains the keys. All of them: `--help`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

try:
    from neti.models.methods.elite.config import EncodeConfig
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Encode, and write the concept file."""
    config = parse_config(EncodeConfig, sys.argv[1:] if argv is None else argv)

    from neti.models.methods.elite.encode import encode_picture  # after the checks: torch takes seconds

    start = time.perf_counter()
    concept = encode_picture(config)
    concept.save(config.output_path)
    patches = concept.method.config.patches
    read = f"{concept.method.positions} words and {patches} patches" if patches else "words alone"
    print(f"{config.output_path}: {read}, in {time.perf_counter() - start:.2f} s with loading the encoder")


if __name__ == "__main__":
    sys.exit(main())
