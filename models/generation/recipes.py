"""Everything one generated image depends on, as one comparable record."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..conditioning.prompts import SLOT

LIBRARIES = ("neti", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class ImageRecipe:
    """What decides the pixels of an image: two images of equal recipes show the same picture.

    Library versions and the device are NOT here. They move pixels by rounding only, and a folder of finished images
    need not be made again after an upgrade; `made_with` records them beside the recipe.
    """

    prompt: str  # as asked for, with `{}` (or `{name}`) where a concept goes
    negative_prompt: str
    seed: int
    truncation: int | None  # hidden units kept (nested dropout); None = all
    steps: int
    guidance_scale: float
    scheduler: str
    base_model: str
    base_revision: str | None
    concept: str  # content hash of the file(s) of the concept that is `{}`: a renamed file is the same; empty: no `{}`
    placeholder: str
    torch_dtype: str
    safety_checker: bool
    # name -> content hash of a concept, or the rules of a mixture, for every `{name}`; None: there is none
    voices: dict[str, Any] | None = None
    word: str | None = None  # a plain word in the place of `{}` instead of a concept

    @property
    def text(self) -> str:
        """What the model is given: `{}` also where the prompt names the placeholder itself, or the word instead."""
        if self.word is not None:
            return self.prompt.replace(SLOT, self.word)
        return self.prompt.replace(self.placeholder, SLOT) if self.placeholder else self.prompt

    def differences(self, recorded: object) -> str:
        """How a `recorded` recipe (a plain dict read from a file) differs, for a message; empty when it does not.

        Names the first three entries, as in `steps 50 there, 30 now`.
        """
        if not isinstance(recorded, dict):
            return "it carries no recipe"
        mine = asdict(self)
        changed = [
            f"{key} {recorded.get(key)!r} there, {mine.get(key)!r} now"
            for key in dict.fromkeys([*mine, *recorded])
            if recorded.get(key) != mine.get(key)
        ]
        return "; ".join(changed[:3]) + (f"; {len(changed) - 3} more" if len(changed) > 3 else "")


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the bytes of the files, in order, as `sha256:<hex>`."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def made_with(concept_files: Iterable[Path], device: str) -> dict[str, Any]:
    """The circumstances worth recording beside a recipe: concept file names, device, library versions."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"concept_files": [path.name for path in concept_files], "device": device, "versions": versions}
