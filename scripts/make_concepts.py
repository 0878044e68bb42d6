"""Render the photos, masks and references of the miniature's held-out concepts, and the pictures in its held-out style.

    python scripts/make_concepts.py [--folder input_configs/concepts] [--pixels 64] [--font NotoColorEmoji.ttf]

The pictures are part of the repository; this script is what they come from. It needs the font Noto Color Emoji (Debian
package fonts-noto-color-emoji).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from neti.training.miniature.world.concepts import write_concepts, write_style
    from neti.training.miniature.world.world import World
    from neti.utils.errors import ArgumentParser, exit_on_user_error
    from neti.utils.files import path_option
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Write all concept folders, the index and the README."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder",
        type=path_option,
        default=Path("input_configs/concepts"),
        help="where the photos are written; the other sets go beside it",
    )
    parser.add_argument("--pixels", type=int, default=64, help="side of a photo: the miniature's image size")
    parser.add_argument("--font", help="path of NotoColorEmoji.ttf, if it is not where Debian puts it")
    arguments = parser.parse_args(argv)
    world = World.create("cpu", arguments.font)
    write_concepts(world, arguments.folder, arguments.pixels)
    write_style(world, arguments.folder.with_name("styles") / "old_print", arguments.pixels)
    print(f"done: {arguments.folder}")


if __name__ == "__main__":
    sys.exit(main())
