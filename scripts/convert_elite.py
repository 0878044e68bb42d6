"""Make one safetensors file out of the official ELITE weights, which are pickles.

    python scripts/convert_elite.py --global_mapper global_mapper.pt --local_mapper local_mapper.pt \
      --output e.safetensors
    python scripts/encode.py --encoder e.safetensors --image photo.png --mask mask.png

The global mapper alone is enough. Nothing in the pickles is executed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from neti.utils.errors import UserError, exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Check both files against the base model, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--global_mapper", type=Path, required=True, help="global_mapper.pt, or mapper_070000.pt")
    parser.add_argument("--local_mapper", type=Path, help="local_mapper.pt; without it there are words alone")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write; must not exist")
    parser.add_argument("--base_model", default="CompVis/stable-diffusion-v1-4", help="the model it was trained for")
    parser.add_argument("--vision", default="openai/clip-vit-large-patch14", help="the CLIP vision tower it reads")
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp16", help="fp16 halves the file (default)")
    arguments = parser.parse_args(argv)
    if arguments.output.suffix != ".safetensors" or arguments.output.exists():
        raise UserError(
            f"--output {arguments.output} must be a new file that ends in .safetensors; choose another name"
        )

    from neti.models.methods.elite.official import convert_official  # takes seconds (torch)

    paths = {"global": arguments.global_mapper, "local": arguments.local_mapper}
    convert_official(
        {role: path for role, path in paths.items() if path is not None},
        arguments.output,
        base_model=arguments.base_model,
        vision=arguments.vision,
        half=arguments.dtype == "fp16",
    )
    print(arguments.output)


if __name__ == "__main__":
    sys.exit(main())
