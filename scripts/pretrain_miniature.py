"""Train the bundled miniature Stable Diffusion from nothing; call again to go on after any interruption.

    python scripts/pretrain_miniature.py --config_path input_configs/miniature_cpu.yaml [--minutes 10] [--key value ...]
    torchrun --nproc_per_node 2 scripts/pretrain_miniature.py --config_path input_configs/miniature_cpu.yaml

Drawing the world needs the font Noto Color Emoji (Debian package fonts-noto-color-emoji); using the miniature does not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from neti.training.miniature.pretraining.config import MiniatureConfig
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages that are not finished yet."""
    config = parse_config(MiniatureConfig, sys.argv[1:] if argv is None else argv)

    from neti.training.miniature.pretraining import loop  # takes seconds: mistakes found above come at once
    from neti.training.miniature.pretraining.pretrain import pretrain

    finished = pretrain(config)
    if loop.rank() > 0:
        return
    if finished:
        print(f"done: {config.output_dir}/vision" if config.vision_only else f"done: {config.output_dir}/sd and judge")
    else:
        print("stopped before the end: run the same command again to go on")


if __name__ == "__main__":
    sys.exit(main())
