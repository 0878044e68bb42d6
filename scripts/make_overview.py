"""One picture of an inference folder: prompts across, truncations down, one seed, the concept's photos on top.

python scripts/make_overview.py outputs/demo/inference --photos input_configs/concepts_one_place/taxi [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

try:
    from PIL import Image

    from neti.models.generation.recipes import read_recipe
    from neti.utils.errors import ArgumentParser, UserError, exit_on_user_error, shorten
    from neti.utils.files import list_folder, path_option
    from neti.utils.grid import labelled_grid
    from neti.utils.images import load_image
    from neti.utils.images.png import read_metadata, write_png
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)

TILE = 192  # small images are enlarged to whole multiples, so that a screen shows them well
MAX_TILES = 1000  # more are too small on any screen, and too large for its memory
Images = dict[tuple[str, int | None], Path]  # by prompt and truncation


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Collect the images of one seed and write `overview.png` into their folder."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=path_option, help="what inference.py wrote: one folder per prompt")
    parser.add_argument("--photos", type=path_option, help="folder of the concept's photos, shown as the first row")
    parser.add_argument("--seed", type=int, help="which seed to show; the lowest if left out")
    arguments = parser.parse_args(argv)

    output = arguments.folder / "overview.png"
    if os.path.lexists(output) and (read_metadata(output) or {}).keys() != {"seed"}:
        raise UserError(f"{output} is not an overview of this script and is left as it is: move it away first")
    seed, images = images_of_one_seed(arguments.folder, arguments.seed)
    prompts = list(dict.fromkeys(prompt for prompt, _ in images))
    truncations = sorted({truncation for _, truncation in images}, key=lambda k: float("-inf") if k is None else -k)
    if len(prompts) * len(truncations) > MAX_TILES:
        count = f"{len(prompts)} prompts x {len(truncations)} truncations"
        raise UserError(f"{count} are too many for one picture, which shows {MAX_TILES} images at most")

    rows, labels = [], []
    if arguments.photos:
        from neti.training.data.photos import find_images  # late: it takes seconds to import

        photos, _ = find_images(arguments.photos)
        rows.append([_tile(load_image(path)) for path in photos[: len(prompts)]])
        labels.append("photos of the concept")
    blank = Image.new("RGB", (TILE, TILE), "#eeeeee")
    for truncation in truncations:
        paths = [images.get((prompt, truncation)) for prompt in prompts]
        rows.append([_tile(load_image(path)) if path else blank for path in paths])
        labels.append("all units" if truncation is None else f"{truncation} units")
    write_png(labelled_grid(rows, labels, prompts, f"seed {seed}"), output, {"seed": seed})
    if missing := len(prompts) * len(truncations) - len(images):
        print(f"note: {missing} of the images are not there; their places are grey")
    print(f"the labelled grid: {output}")


def images_of_one_seed(folder: Path, seed: int | None) -> tuple[int, Images]:
    """The images of a seed, the lowest if None. UserError for a folder without images, or none of that seed."""
    found: dict[int, Images] = {}
    for place in list_folder(folder, "folder"):
        for path in sorted(place.glob("*.png")):
            if recipe := read_recipe(path):
                found.setdefault(recipe.seed, {})[recipe.prompt, recipe.truncation] = path
            elif not read_metadata(path):  # grids have metadata of their own
                print(f"note: {path} is left out: it is damaged, or was not made by scripts/inference.py")
    if not found:
        raise UserError(f"{folder} holds no images of scripts/inference.py: pass its inference_dir")
    seed = min(found) if seed is None else seed
    if seed not in found:
        there = shorten(", ".join(map(str, sorted(found))))
        raise UserError(f"seed {shorten(str(seed))} has no image in {folder}; there are the seeds {there}")
    return seed, found[seed]


def _tile(image: Image.Image) -> Image.Image:
    factor = max(TILE // image.width, 1)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


if __name__ == "__main__":
    sys.exit(main())
