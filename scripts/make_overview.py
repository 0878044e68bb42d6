"""One picture of an inference folder: prompts across, truncations down, one seed, the concept's photos on top.

python scripts/make_overview.py outputs/demo/inference --photos input_configs/concepts/taxi [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from PIL import Image

    from neti.training.evaluation.images import described_image
    from neti.utils.errors import UserError, exit_on_user_error
    from neti.utils.grid import labelled_grid
    from neti.utils.images import load_image
    from neti.utils.images.png import read_metadata, write_png
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)

TILE = 192  # small images are enlarged to whole multiples, so that a screen shows them well


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Collect the images of one seed and write `overview.png` into their folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what inference.py wrote: one folder per prompt")
    parser.add_argument("--photos", type=Path, help="folder of the concept's photos, shown as the first row")
    parser.add_argument("--seed", type=int, help="which seed to show; the lowest if left out")
    arguments = parser.parse_args(argv)

    images: dict[tuple[str, int | None, int | None], Path] = {}
    for path in sorted(arguments.folder.glob("*/*.png")):
        if recipe := (read_metadata(path) or {}).get("recipe"):
            image = described_image(path, recipe)
            images[image.prompt, image.truncation, image.seed] = path
    if not images:
        raise UserError(f"{arguments.folder} holds no images of scripts/inference.py: pass its inference_dir")
    seeds = sorted({seed for _, _, seed in images if seed is not None})
    seed = seeds[0] if arguments.seed is None else arguments.seed
    if seed not in seeds:
        raise UserError(f"--seed {seed}: {arguments.folder} has images of the seeds {', '.join(map(str, seeds[:20]))}")
    output = arguments.folder / "overview.png"
    if output.exists() and "seed" not in (read_metadata(output) or {}):
        raise UserError(f"{output} was not written by this script and stays as it is; move it away")
    prompts = list(dict.fromkeys(prompt for prompt, _, _ in images))
    truncations = sorted({key[1] for key in images}, key=lambda k: float("-inf") if k is None else -k)

    rows, labels = [], []
    if arguments.photos:
        from neti.training.data.photos import find_images  # late: it takes seconds to import

        photos, _ = find_images(arguments.photos)
        rows.append([_tile(load_image(path)) for path in photos[: len(prompts)]])
        labels.append("photos of the concept")
    blank = Image.new("RGB", (TILE, TILE), "#eeeeee")
    for truncation in truncations:
        paths = [images.get((prompt, truncation, seed)) for prompt in prompts]
        rows.append([_tile(load_image(path)) if path else blank for path in paths])
        labels.append("all units" if truncation is None else f"{truncation} units")
    write_png(labelled_grid(rows, labels, prompts, f"seed {seed}"), output, {"seed": seed})
    print(f"the labelled grid: {output}")


def _tile(image: Image.Image) -> Image.Image:
    factor = max(TILE // image.width, 1)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


if __name__ == "__main__":
    sys.exit(main())
