"""Generated images on disk: which file belongs to which recipe, what is finished, and the grids over them.

    {root}/A photo of {}/42.png                  seed 42, all hidden units
                        /42.json                 its recipe, which the PNG carries too
                        /42_truncation_16.png    seed 42, the first 16 hidden units
                        /grid.png                all seeds; grid_truncation_16.png: the same of that truncation
                        /truncations.png         truncations down, seeds across, when several were asked for
                        /style_mixing.png        seeds down, the columns of style mixing across; their images lie in
                                                 folders of their own, `A photo of {mug-cat-600}`

The truncation is a suffix, as in the public code, so that a file manager shows a seed's whole slider side by side.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ...utils.errors import UserError
from ...utils.files import require_writable, write_json
from ...utils.grid import labelled_grid
from ...utils.images.png import read_metadata, write_png
from ..conditioning.prompts import safe_name
from .recipes import ImageRecipe

GRID_PIXELS = 2**25  # of all tiles: 128 at 512 x 512, about 100 MB; more tiles are shown smaller
GRID_COLUMNS = 8  # a wider grid is unreadable on a screen; many seeds grow into a square
SLIDER_COLUMNS = 16  # seeds in the truncation-by-seed grid, which is there to compare rows


class Gallery:
    """The folder that holds one folder of images per prompt."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, prompt: str) -> Path:
        return self.root / safe_name(prompt)

    def path(self, recipe: ImageRecipe) -> Path:
        return self.folder(recipe.prompt) / f"{recipe.seed}{variant_suffix(variant_of(recipe))}.png"

    def unfinished(self, recipes: Sequence[ImageRecipe]) -> list[ImageRecipe]:
        """The recipes whose images are not there yet.

        Raises UserError if an image made from ANOTHER recipe is in the place of one: neither skipping it (the user
        would look at the wrong picture) nor replacing it (somebody may want it) is ours to decide.
        """
        missing, foreign = [], []
        for recipe in recipes:
            path = self.path(recipe)
            if not os.path.lexists(path):
                missing.append(recipe)
            elif difference := recipe.differences((read_metadata(path) or {}).get("recipe")):
                foreign.append((path, difference))
        if foreign:
            path, difference = foreign[0]
            others = f", and {len(foreign) - 1} more were" if len(foreign) > 1 else " was"
            raise UserError(
                f"{path}{others} made from another recipe ({difference}): choose another inference_dir, or remove the "
                "old images"
            )
        for folder in dict.fromkeys(self.folder(recipe.prompt) for recipe in missing):
            if os.path.lexists(folder) and not os.path.isdir(folder):
                raise UserError(f"{folder} is in the place of a folder of images: move it away")
        return missing

    def require_writable(self) -> None:
        """UserError, before the work, if the folder could not be written to."""
        require_writable(self.root, "inference_dir")

    def add(self, image: Image.Image, recipe: ImageRecipe, circumstances: Mapping[str, Any]) -> None:
        """Write the image and the JSON beside it, the image last: once it is there, both are complete."""
        path = self.path(recipe)
        record = {"recipe": asdict(recipe), **circumstances}
        write_json(record, path.with_suffix(".json"))
        write_png(image, path, record)

    def write_grids(self, recipes: Sequence[ImageRecipe]) -> None:
        """Write the grids over the finished images of ONE prompt, `recipes` being all its seeds and truncations.

        A grid that already shows just these images is left alone.
        """
        by_variant = _by_variant(recipes)
        prompt = recipes[0].prompt
        for variant, images in by_variant.items():
            columns = GRID_COLUMNS if len(images) <= GRID_COLUMNS**2 else math.isqrt(len(images) - 1) + 1
            rows = [images[start : start + columns] for start in range(0, len(images), columns)]
            path = self.folder(prompt) / f"grid{variant_suffix(variant)}.png"
            if len(rows) == 1:
                self._write_grid(path, rows, [], _seed_labels(images), _title(prompt, variant))
            else:
                self._write_grid(path, rows, [_seeds_label(row) for row in rows], [], _title(prompt, variant))
        if len(by_variant) > 1:
            rows = [images[:SLIDER_COLUMNS] for images in by_variant.values()]
            row_labels = [_label(variant) for variant in by_variant]
            name = "truncations.png" if all(len(variant) == 1 for variant in by_variant) else "settings.png"
            self._write_grid(self.folder(prompt) / name, rows, row_labels, _seed_labels(rows[0]), prompt)

    def write_columns(self, name: str, prompt: str, columns: Mapping[str, Sequence[ImageRecipe]]) -> None:
        """Write `{name}.png` (one per truncation) into the folder of `prompt`: a labelled column for each set of
        images, a row per seed, SLIDER_COLUMNS at most. The sets have the same seeds and truncations in one order."""
        by_variant = [_by_variant(recipes) for recipes in columns.values()]
        for variant in by_variant[0]:
            rows = [list(row) for row in zip(*(column[variant] for column in by_variant), strict=True)]
            rows = rows[:SLIDER_COLUMNS]
            path = self.folder(prompt) / f"{name}{variant_suffix(variant)}.png"
            labels = _seed_labels([row[0] for row in rows])
            self._write_grid(path, rows, labels, list(columns), _title(prompt, variant))

    def _write_grid(
        self, path: Path, rows: list[list[ImageRecipe]], row_labels: list[str], column_labels: list[str], title: str
    ) -> None:
        record = {"images": [[asdict(recipe) for recipe in row] for row in rows]}
        if read_metadata(path) == record:
            return
        side = math.isqrt(GRID_PIXELS // (len(rows) * len(rows[0])))
        tiles = [[_thumbnail(self.path(recipe), side) for recipe in row] for row in rows]
        write_png(labelled_grid(tiles, row_labels, column_labels, title), path, record)


Variant = tuple[tuple[str, Any], ...]  # what an image was drawn with beside its prompt and seed, truncation first


def variant_of(recipe: ImageRecipe) -> Variant:
    """The truncation and the settings of a recipe, which images of one prompt and seed differ in."""
    return ("truncation", recipe.truncation), *(recipe.settings or {}).items()


def variant_suffix(variant: Variant, mark: str = "_") -> str:
    """The part of a file name that tells the variant; nothing when all hidden units are kept and nothing is set."""
    return "".join(f"{mark}{name}{mark}{_value(value)}" for name, value in variant if value is not None)


def in_words(variant: Variant) -> list[str]:
    """What is set, and which hidden units are kept unless all are."""
    (_, truncation), *settings = variant
    shown = [f"{name} {_value(value)}" for name, value in settings]
    return shown + ([] if truncation is None else [f"{truncation} hidden units"])


def _label(variant: Variant) -> str:
    return ", ".join(in_words(variant)) or "all hidden units"


def _title(prompt: str, variant: Variant) -> str:
    return f"{prompt}   ({', '.join(in_words(variant))})" if in_words(variant) else prompt


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else safe_name(str(value))


def _by_variant(recipes: Sequence[ImageRecipe]) -> dict[Variant, list[ImageRecipe]]:
    found: dict[Variant, list[ImageRecipe]] = {}
    for recipe in recipes:
        found.setdefault(variant_of(recipe), []).append(recipe)
    return found


def _seed_labels(recipes: Sequence[ImageRecipe]) -> list[str]:
    return [f"seed {recipe.seed}" for recipe in recipes]


def _seeds_label(recipes: Sequence[ImageRecipe]) -> str:
    """`seeds 0-7` for a run of seeds, else all of them."""
    seeds = [recipe.seed for recipe in recipes]
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"


def _thumbnail(path: Path, side: int) -> Image.Image:
    """The image, shrunk where it is larger than `side` pixels."""
    with Image.open(path) as image:
        tile = image.convert("RGB")
    tile.thumbnail((side, side), Image.Resampling.LANCZOS)
    return tile
