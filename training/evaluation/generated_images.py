"""Reading back what `models/generation/gallery.py` wrote: the images of folders, by the recipes they carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.conditioning.prompts import SLOT
from ...utils.errors import UserError
from ...utils.image_files import read_metadata

VARYING = ("prompt", "seed", "truncation")  # the entries of a recipe in which the images of one set may differ


@dataclass(frozen=True)
class GeneratedImage:
    """One image and the part of its recipe that tells it from the others of its set."""

    path: Path
    prompt: str  # with {} for the concept, also where the recipe names the placeholder itself
    seed: int
    truncation: int | None


@dataclass(frozen=True)
class GeneratedSet:
    """All images of one method and concept. recipe: what they have in common; withheld: black ones, left out."""

    images: list[GeneratedImage]
    recipe: dict[str, Any]
    withheld: int

    @property
    def prompts(self) -> list[str]:
        return list(dict.fromkeys(image.prompt for image in self.images))

    @property
    def truncations(self) -> list[int | None]:
        """The full concept first, then fewer and fewer units."""
        found = {image.truncation for image in self.images}
        units = sorted((truncation for truncation in found if truncation is not None), reverse=True)
        return [None, *units] if None in found else list(units)


def read_generated(folders: Sequence[Path]) -> GeneratedSet:
    """The images below `folders`, which together hold one set: one concept, one way of generating.

    Grids and overviews, which carry no recipe but this project's mark, are skipped, and so are images that the safety
    checker withheld. Raises UserError for a missing folder, one without images, an image without a recipe, images whose
    recipes differ in more than prompt, seed and truncation, and an image that is there twice.
    """
    images: dict[tuple[str, int, int | None], GeneratedImage] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    withheld = 0
    for path in (path for folder in folders for path in _pngs(folder)):
        metadata = read_metadata(path)
        if metadata is not None and "recipe" not in metadata:
            continue
        recipe = (metadata or {}).get("recipe")
        image = _image(path, recipe)
        if image is None or recipe is None:
            raise UserError(
                f"{path} carries no recipe, so its prompt is not known: measure images as scripts/inference.py writes "
                "them, and take other files out of the folder"
            )
        if recipe.get("concepts") or recipe.get("voices"):  # the name that earlier versions gave them
            raise UserError(
                f"{path} shows named concepts ({image.prompt!r}), and a measurement is of one concept: generate images "
                f"of prompts with {SLOT}"
            )
        common = {key: value for key, value in recipe.items() if key not in VARYING}
        first = first or (path, common)
        _require_same(*first, path, common)
        key = (image.prompt, image.seed, image.truncation)
        if key in images:
            raise UserError(
                f"{path} shows the same prompt, seed and truncation as {images[key].path}: an image counts once"
            )
        if metadata and "withheld_by" in metadata:
            withheld += 1
        else:
            images[key] = image
    if first is None or not images:
        reason = f"all {withheld} were withheld by the safety checker" if withheld else "no PNG with a recipe"
        raise UserError(
            f"{', '.join(map(str, folders))}: no generated images ({reason}); "
            "give a folder that scripts/inference.py wrote"
        )
    return GeneratedSet(list(images.values()), first[1], withheld)


def _pngs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"the folder of generated images {folder} does not exist; check runs and prompt_only")
    return sorted(path for path in folder.rglob("*.png") if not path.name.startswith(".") and path.is_file())


def _image(path: Path, recipe: object) -> GeneratedImage | None:
    """The image that a recipe describes; None if an entry is missing or of the wrong type."""
    if not isinstance(recipe, dict):
        return None
    prompt, seed, truncation = (recipe.get(key) for key in VARYING)
    if not isinstance(prompt, str) or not isinstance(seed, int) or not isinstance(truncation, int | None):
        return None
    if placeholder := recipe.get("placeholder"):
        prompt = prompt.replace(str(placeholder), SLOT)
    return GeneratedImage(path, prompt, seed, truncation)


def _require_same(path: Path, recipe: dict[str, Any], other_path: Path, other: dict[str, Any]) -> None:
    if different := [key for key in dict.fromkeys([*recipe, *other]) if recipe.get(key) != other.get(key)]:
        key = "concept" if "concept" in different else different[0]
        raise UserError(
            f"{other_path} is not of the same set as {path}: {key} {other.get(key)!r} there, {recipe.get(key)!r} here; "
            "measure one concept, generated in one way, per entry of runs"
        )
