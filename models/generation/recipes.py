"""Everything one generated image depends on, as one comparable record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ...utils.config.records import from_plain
from ...utils.devices import library_versions
from ...utils.errors import UserError, first_line, shown
from ...utils.images.png import read_metadata
from ..conditioning.prompts import SLOT, Prompt

RENAMED = {"voices": "concepts"}  # what earlier versions called an entry


@dataclass(frozen=True)
class ImageRecipe:
    """What decides the pixels of an image: two images of equal recipes show the same picture.

    Library versions and the device are NOT here. They move pixels by rounding only, and a folder of finished images
    need not be made again after an upgrade; `made_with` records them beside the recipe.
    """

    prompt: str  # as asked for, with `{}` (or `{name}`) where a concept goes
    negative_prompt: str = ""
    seed: int = 0
    truncation: int | None = None  # hidden units kept (nested dropout); None = all
    steps: int = 50
    guidance_scale: float = 7.5
    scheduler: str = "dpmsolver++"
    base_model: str = ""
    base_revision: str | None = None
    concept: str = ""  # content hash of the file(s) of the concept that is `{}`: a renamed file is the same
    placeholder: str = ""  # the word that prompts may have in the place of `{}`
    torch_dtype: str = "fp32"
    safety_checker: bool = False
    # name -> content hash of a concept, or the rules of a mixture, for every `{name}`; None: there is none
    concepts: dict[str, Any] | None = None
    height: int | None = None  # in pixels; None: what the base model was trained on
    width: int | None = None
    settings: dict[str, Any] | None = None  # of the concepts' methods, such as beta; None: as they are
    word: str | None = None  # a plain word in the place of `{}` instead of a concept

    @cached_property
    def parsed(self) -> Prompt:
        """The prompt with `{}` also where it names the placeholder itself, or with the word instead."""
        return self._parse(self.prompt)

    @cached_property
    def parsed_negative(self) -> Prompt:
        """The negative prompt, likewise."""
        return self._parse(self.negative_prompt)

    def _parse(self, text: str) -> Prompt:
        return Prompt.parse(text if self.word is None else text.replace(SLOT, self.word), self.placeholder)

    @classmethod
    def from_record(cls, recorded: object, path: Path) -> ImageRecipe:
        """The recipe that was `recorded` in the image at `path`, as plain JSON.

        Entries that only other versions know are left out. UserError for entries of the wrong type, or none.
        """
        known = {field.name for field in fields(cls)}
        try:
            if not isinstance(recorded, dict) or not {"prompt", "seed"} <= recorded.keys():
                raise ValueError("it tells no prompt and seed")
            renamed = {RENAMED.get(key, key): value for key, value in recorded.items()}
            return from_plain(cls, {key: value for key, value in renamed.items() if key in known})
        except ValueError as error:
            reason = first_line(error)
            raise UserError(f"{path}: its recipe is damaged or was edited ({reason}); generate it again") from None

    def differences(self, recorded: object) -> str:
        """How a `recorded` recipe (a plain dict read from a file) differs, for a message; empty when it does not.

        An entry that the record does not have counts as its default. Names the first three entries, as in
        `steps 50 there, 30 now`.
        """
        if not isinstance(recorded, dict):
            return "it carries no recipe"
        defaults: dict[str, Any] = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        there = dict(defaults)
        there.update({RENAMED.get(str(key), str(key)): value for key, value in recorded.items()})
        mine = asdict(self)
        changed = [
            f"{shown(key)[1:-1]} {shown(there.get(key))} there, {shown(mine.get(key))} now"
            for key in dict.fromkeys([*mine, *there])
            if there.get(key) != mine.get(key)
        ]
        return "; ".join(changed[:3]) + (f"; {len(changed) - 3} more" if len(changed) > 3 else "")


def read_recipe(path: Path) -> ImageRecipe | None:
    """The recipe that a generated image carries; None for grids, overviews and pictures from elsewhere.

    Raises UserError for a recipe of another shape: its image is of this project, and somebody changed it.
    """
    recorded = (read_metadata(path) or {}).get("recipe")
    return None if recorded is None else ImageRecipe.from_record(recorded, path)


def made_with(concept_files: Iterable[Path], device: str) -> dict[str, Any]:
    """The circumstances worth recording beside a recipe: concept file names, device, library versions."""
    return {"concept_files": [path.name for path in concept_files], "device": device, "versions": library_versions()}
