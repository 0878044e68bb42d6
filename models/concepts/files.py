"""Which file(s) hold the concept a user asked for, and loading it, whichever of the two formats it is in.

A concept of this project is one file, `concept-steps-{N}.safetensors`; one of the public code is a pair,
`mapper-steps-{N}.pt` with `learned_embeds-steps-{N}.bin`. Both lie in the run folder or in its `checkpoints/`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...utils.errors import UserError

if TYPE_CHECKING:
    from .concept import Concept

CONCEPT_NAME = re.compile(r"concept-steps-(\d+)\.safetensors")
MAPPER_NAME = re.compile(r"mapper-steps-(\d+)\.pt")


class ConceptFiles(NamedTuple):
    """`concept` alone, or the public code's mapper (as `concept`) with its `embeds`; `iteration` if a name told it."""

    concept: Path
    embeds: Path | None = None
    iteration: int | None = None

    @property
    def paths(self) -> list[Path]:
        """The files that hold the concept, in the order their contents are hashed."""
        return [self.concept] if self.embeds is None else [self.concept, self.embeds]

    def load(self) -> Concept:
        """The concept; UserError for a file that is missing, broken, foreign or asks to execute code."""
        from .concept import Concept  # imported late: finding files must not cost the seconds torch takes
        from .public_code import load_reference_concept

        if self.embeds is None:
            return Concept.load(self.concept)
        return load_reference_concept(self.concept, self.embeds)


def explicit_files(concept: Path, embeds: Path | None) -> ConceptFiles:
    """The files named one by one; UserError when one is missing or a mapper comes without its embeddings."""
    if concept.suffix != ".safetensors" and embeds is None:
        raise UserError(
            f"mapper_checkpoint_path {concept} is a checkpoint of the public code and needs learned_embeds_path too; "
            "a concept of this project ends in .safetensors"
        )
    files = ConceptFiles(concept, embeds)
    for path in files.paths:
        if not path.is_file():
            raise UserError(f"no concept file at {path}: check the path, or give input_dir and iteration")
    return files


def files_at(place: Path) -> ConceptFiles:
    """The concept at a place that says by itself what it is: a run folder (its highest iteration), a `.safetensors`
    file, or a mapper file of the public code with its embeddings file beside it. UserError as the others."""
    if place.is_dir():
        return find_files(place)
    if place.suffix == ".safetensors":
        return explicit_files(place, None)
    if not MAPPER_NAME.fullmatch(place.name):
        raise UserError(
            f"no concept at {place}: give a .safetensors file, a mapper-steps-N.pt of the public code, or a "
            "run's folder"
        )
    embeds = _embeds(place)
    if not embeds.is_file():
        raise UserError(f"{place} is a mapper of the public code and needs {embeds.name} beside it")
    return explicit_files(place, embeds)


def find_files(input_dir: Path, iteration: int | None = None) -> ConceptFiles:
    """The concept of `iteration` in a run folder, of the highest iteration when None.

    Where both formats hold the same iteration (a converted checkpoint) the `.safetensors` is taken. UserError names
    the iterations that are there.
    """
    if not input_dir.is_dir():
        raise UserError(f"input_dir {input_dir} is not a folder: give the folder a training run wrote")
    found: dict[int, ConceptFiles] = {}
    folders = [folder for folder in (input_dir, input_dir / "checkpoints") if folder.is_dir()]
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if (match := MAPPER_NAME.fullmatch(path.name)) and _embeds(path).is_file():
                found.setdefault(int(match[1]), ConceptFiles(path, _embeds(path), int(match[1])))
    for folder in reversed(folders):
        for path in sorted(folder.iterdir()):
            if match := CONCEPT_NAME.fullmatch(path.name):
                found[int(match[1])] = ConceptFiles(path, iteration=int(match[1]))
    if not found:
        raise UserError(
            f"no concept in {input_dir}: looked for concept-steps-N.safetensors, and for mapper-steps-N.pt beside "
            "learned_embeds-steps-N.bin, there and in its checkpoints folder"
        )
    if iteration is not None and iteration not in found:
        there = ", ".join(map(str, sorted(found)))
        raise UserError(f"no concept of iteration {iteration} in {input_dir}: it holds iterations {there}")
    return found[max(found) if iteration is None else iteration]


def _embeds(mapper: Path) -> Path:
    """Where the public code puts the embeddings that belong to a mapper file."""
    return mapper.with_name(mapper.name.replace("mapper-", "learned_embeds-")).with_suffix(".bin")
