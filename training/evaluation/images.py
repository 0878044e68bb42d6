"""Generated images of folders, each with its prompt: as scripts/inference.py wrote them, or made by any other tool."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.conditioning.prompts import SLOT
from ...models.generation.recipes import RENAMED, ImageRecipe
from ...utils.errors import UserError
from ...utils.images.png import read_metadata

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
VARYING = ("prompt", "seed", "truncation")  # the entries of a recipe in which the images of one set may differ
PROMPTS_FILE = "prompts.csv"
COLUMNS = ["file_name", "prompt"]
SHEETS = ("grid", "truncations", "style_mixing", "overview", "metrics")  # names of pictures that show several images
_PLACEHOLDER = re.compile(r"<[^<>\s]+>")
_NUMBERED = re.compile(r"(\d{1,18})(?:_truncation_(\d{1,9}))?")


@dataclass(frozen=True)
class GeneratedImage:
    """One image and what tells it from the others of its set. seed None: not known."""

    path: Path
    prompt: str  # with {} for the concept, also where the recipe names the placeholder itself
    seed: int | None
    truncation: int | None


@dataclass(frozen=True)
class GeneratedSet:
    """All images of one method and concept. recipe: what they have in common, empty for those of other tools; withheld:
    how many black ones were left out; skipped: grids without a recipe."""

    images: list[GeneratedImage]
    recipe: dict[str, Any]
    withheld: int = 0
    skipped: tuple[Path, ...] = ()

    @property
    def prompts(self) -> list[str]:
        return list(dict.fromkeys(image.prompt for image in self.images))

    @property
    def truncations(self) -> list[int | None]:
        """The full concept first, then fewer and fewer units."""
        found = {image.truncation for image in self.images}
        units = sorted((truncation for truncation in found if truncation is not None), reverse=True)
        return [None, *units] if None in found else list(units)


def read_generated(folders: Sequence[Path], plain: bool = False) -> GeneratedSet:
    """The images below `folders`, which together hold one set: one concept, one way of generating.

    The prompt is that of the recipe inside a PNG, of the recipe beside an image (`42.json`), of prompts.csv in the
    folder that was named, or the name of the image's own folder, which must hold `{}` or a `<placeholder>`; plain: not
    even that, as for images of the super-category word.

    Grids are skipped, and images that the safety checker withheld. Raises UserError for a missing folder, one without
    images, an image without a prompt, images whose recipes differ in more than prompt, seed and truncation, and an
    image that is there twice.
    """
    found = [(path, folder, _record(path)) for folder in folders for path in _image_files(folder)]
    ours = [(path, record) for path, _, record in found if record is not None and "recipe" in record]
    foreign = [(path, folder) for path, folder, record in found if record is None]
    sheets = tuple(path for path, _ in foreign if path.stem.startswith(SHEETS))
    foreign = [(path, folder) for path, folder in foreign if path not in sheets]
    if ours and foreign:
        raise UserError(
            f"{foreign[0][0]} carries no recipe, and {ours[0][0]} does: one set is made in one way; take it out of the "
            "folder"
        )
    if ours:
        return _from_recipes(ours, sheets, folders)
    if not foreign:
        raise _nothing(folders, 0)
    listed = {folder: _listed_prompts(folder) for folder in dict.fromkeys(folders)}
    return GeneratedSet(
        [_foreign_image(path, folder, listed[folder], plain) for path, folder in foreign], {}, 0, sheets
    )


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"the folder of generated images {folder} does not exist; check runs and prompt_only")
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in paths if path.is_file())


def _record(path: Path) -> dict[str, Any] | None:
    """What this project wrote into the image or beside it; None where it wrote neither."""
    if (record := read_metadata(path)) is not None:
        return record
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "recipe" in record else None


def _from_recipes(
    found: Sequence[tuple[Path, dict[str, Any]]], sheets: tuple[Path, ...], folders: Sequence[Path]
) -> GeneratedSet:
    images: dict[tuple[str, int | None, int | None], GeneratedImage] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    withheld = 0
    for path, record in found:
        recipe = record["recipe"]
        image = described_image(path, recipe)
        # an entry that is null is one that other versions may not have
        common = {RENAMED.get(k, k): v for k, v in recipe.items() if k not in VARYING and v is not None}
        if common.get("concepts"):
            raise UserError(
                f"{path} shows named concepts ({image.prompt!r}), and a measurement is of one concept: generate images "
                f"of prompts with {SLOT}"
            )
        first = first or (path, common)
        _require_same(*first, path, common)
        key = (image.prompt, image.seed, image.truncation)
        if key in images:
            raise UserError(
                f"{path} shows the same prompt, seed and truncation as {images[key].path}: an image counts once"
            )
        if "withheld_by" in record:
            withheld += 1
        else:
            images[key] = image
    if first is None or not images:
        raise _nothing(folders, withheld)
    return GeneratedSet(list(images.values()), first[1], withheld, sheets)


def described_image(path: Path, recipe: Any) -> GeneratedImage:
    """The image that a recipe describes. UserError if an entry is missing or of the wrong type."""
    made = ImageRecipe.from_record(recipe, path)
    prompt = made.prompt.replace(made.placeholder, SLOT) if made.placeholder else made.prompt
    return GeneratedImage(path, prompt, made.seed, made.truncation)


def _foreign_image(path: Path, folder: Path, listed: dict[Path, str], plain: bool) -> GeneratedImage:
    name = _PLACEHOLDER.sub(SLOT, path.parent.name)
    prompt = listed.get(path, name if plain or SLOT in name else None)
    if prompt is None:
        raise UserError(
            f"{path}: its prompt is not known; write it into {folder / PROMPTS_FILE} (columns {','.join(COLUMNS)}), "
            f"or call the folder as the prompt, with {SLOT} for the concept"
        )
    number = _NUMBERED.fullmatch(path.stem)
    seed, truncation = (int(part) if part else None for part in number.groups()) if number else (None, None)
    return GeneratedImage(path, prompt, seed, truncation)


def _listed_prompts(folder: Path) -> dict[Path, str]:
    """File -> prompt, of the folder's prompts.csv; empty without one. UserError if it is not as it should be."""
    path = folder / PROMPTS_FILE
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({error}); write UTF-8 text with the columns file_name,prompt"
        ) from None
    listed = {}
    for number, row in enumerate(rows, 2):
        name, prompt = (row.get(column) for column in COLUMNS)
        if not name or not prompt:
            raise UserError(f"{path}, line {number}: needs the columns {','.join(COLUMNS)}, both filled")
        if not (folder / name).is_file():
            raise UserError(f"{path}, line {number}: there is no file {name!r} in {folder}")
        listed[folder / name] = _PLACEHOLDER.sub(SLOT, prompt)
    return listed


def _nothing(folders: Sequence[Path], withheld: int) -> UserError:
    reason = f"all {withheld} were withheld by the safety checker" if withheld else f"no {', '.join(SUFFIXES)} below it"
    return UserError(f"{', '.join(map(str, folders))}: no generated images ({reason}); give a folder that holds some")


def _require_same(path: Path, recipe: dict[str, Any], other_path: Path, other: dict[str, Any]) -> None:
    if different := [key for key in dict.fromkeys([*recipe, *other]) if recipe.get(key) != other.get(key)]:
        key = "concept" if "concept" in different else different[0]
        raise UserError(
            f"{other_path} is not of the same set as {path}: {key} {other.get(key)!r} there, {recipe.get(key)!r} here; "
            "measure one concept, generated in one way, per entry of runs"
        )
