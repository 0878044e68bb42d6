"""Which file(s) hold the concept a user asked for, and loading it, whichever of the two formats it is in.

A concept of this project is one file, `concept-steps-{N}.safetensors`; one of the public code is a pair,
`mapper-steps-{N}.pt` with `learned_embeds-steps-{N}.bin`. Both lie in the run folder or in its `checkpoints/`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ...utils.config.yaml_text import load_yaml
from ...utils.errors import UserError, shorten
from ...utils.files import list_folder, require_file

if TYPE_CHECKING:
    from .concept import Concept

CONCEPT_NAME = re.compile(r"concept-steps-(\d+)\.safetensors")
MAPPER_NAME = re.compile(r"mapper-steps-(\d+)\.pt")
EMBEDS_NAME = re.compile(r"learned_embeds-steps-(\d+)\.bin")


class ConceptFiles(NamedTuple):
    """`concept` alone, or the public code's mapper (as `concept`) with its `embeds`; `iteration` if a name has it."""

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

        if self.embeds is not None:
            return load_reference_concept(self.concept, self.embeds)
        concept = Concept.load(self.concept)
        if path := _local_base_model(self.concept, concept.metadata.get("base_model")):
            concept.metadata["base_model"] = path
        return concept


def explicit_files(concept: Path, embeds: Path | None) -> ConceptFiles:
    """The files named one by one; UserError when one is missing or a mapper comes without its embeddings."""
    if concept.suffix != ".safetensors" and embeds is None:
        raise UserError(
            f"{concept} does not end in .safetensors, as concepts of this project do; a mapper-steps-N.pt of the "
            "public code is given as mapper_checkpoint_path, with its learned_embeds_path"
        )
    files = ConceptFiles(concept, embeds)
    for path in files.paths:
        require_file(path, "concept file")
    return files


def chosen_files(
    input_dir: Path | None, iteration: int | None, mapper: Path | None, embeds: Path | None
) -> ConceptFiles:
    """As the public code chooses: the named files, and whatever half is not named from `input_dir` at `iteration`."""
    if input_dir is not None and mapper is None and embeds is None:
        return find_files(input_dir, iteration)
    if input_dir is not None and mapper is None:
        mapper = _half(input_dir, iteration, "mapper", MAPPER_NAME)
    elif input_dir is not None and embeds is None and mapper is not None and mapper.suffix != ".safetensors":
        embeds = _half(input_dir, iteration, "learned_embeds", EMBEDS_NAME)
    if mapper is None:
        raise UserError(f"learned_embeds_path {embeds} needs its mapper: give mapper_checkpoint_path or input_dir too")
    return explicit_files(mapper, embeds)


def files_at(place: Path) -> ConceptFiles:
    """The concept at a place that says by itself what it is: a run folder (its highest iteration), a `.safetensors`
    file, or a mapper file of the public code with its embeddings file beside it. UserError as the others."""
    if os.path.isdir(place):
        return find_files(place)
    if place.suffix == ".safetensors":
        return explicit_files(place, None)
    if not MAPPER_NAME.fullmatch(place.name):
        raise UserError(
            f"no concept at {place}: give a .safetensors file, a mapper-steps-N.pt of the public code, or a "
            "run's folder"
        )
    embeds = _embeds(place)
    if not os.path.isfile(embeds):
        raise UserError(f"{place} is a mapper of the public code and needs {embeds.name} beside it")
    return explicit_files(place, embeds)


def find_files(input_dir: Path, iteration: int | None = None) -> ConceptFiles:
    """The concept of `iteration` in a run folder, of the highest iteration when None.

    Where both formats hold the same iteration (a converted checkpoint) the `.safetensors` is taken. UserError names
    the iterations that are there.
    """
    found = {n: ConceptFiles(path, _embeds(path), n) for n, path in _numbered(input_dir, MAPPER_NAME, with_embeds=True)}
    found |= {n: ConceptFiles(path, iteration=n) for n, path in _numbered(input_dir, CONCEPT_NAME)}
    if not found:
        raise UserError(
            f"no concept in {input_dir}: looked for concept-steps-N.safetensors, and for mapper-steps-N.pt beside "
            "learned_embeds-steps-N.bin, there and in its checkpoints folder"
        )
    if iteration is not None and iteration not in found:
        there = shorten(", ".join(map(str, sorted(found))))
        raise UserError(f"no concept of iteration {iteration} in {input_dir}: it holds iterations {there}")
    return found[max(found) if iteration is None else iteration]


def _local_base_model(concept: Path, name: str | None) -> str | None:
    """Where the base model lies that the concept knows by name only: its run's own config.yaml, beside or above it."""
    for folder in concept.absolute().parents[:2]:
        if name and os.path.isfile(folder / "config.yaml"):
            try:
                path = load_yaml(folder / "config.yaml")["model"]["pretrained_model_name_or_path"]
            except (UserError, LookupError, TypeError):  # somebody else's file
                continue
            if isinstance(path, str) and path != name and without_paths(path) == name:
                return path
    return None


def without_paths(value: Any) -> Any:
    """JSON with the last name of every path that leads through somebody's disk: files are made to be shared.

    A path inside the folder that a command was called in (`photos/mug`, `models/miniature/sd`) tells nothing and stays.
    """
    if isinstance(value, Mapping):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(part) for part in value]
    if isinstance(value, str):
        windows = PureWindowsPath(value)  # knows both separators
        if windows.is_absolute() or value.startswith(("/", "~", "..")):
            return windows.name
    return value


def _half(input_dir: Path, iteration: int | None, kind: str, name: re.Pattern[str]) -> Path:
    """One of the two files of a concept of the public code."""
    found = dict(_numbered(input_dir, name))
    number = max(found, default=None) if iteration is None else iteration
    if number not in found:
        raise UserError(f"{input_dir} holds no {kind}-steps-{'N' if number is None else number}; name it too")
    return found[number]


def _numbered(input_dir: Path, name: re.Pattern[str], with_embeds: bool = False) -> list[tuple[int, Path]]:
    """Iteration and path of the files of this name in a run folder, those in its `checkpoints/` first."""
    paths = list_folder(input_dir, "input_dir")
    if os.path.isdir(input_dir / "checkpoints"):
        paths = list_folder(input_dir / "checkpoints", "input_dir") + paths
    named = [(int(match[1]), path) for path in paths if (match := name.fullmatch(path.name))]
    return [(n, path) for n, path in named if not with_embeds or os.path.isfile(_embeds(path))]


def _embeds(mapper: Path) -> Path:
    """Where the public code puts the embeddings that belong to a mapper file."""
    return mapper.with_name(mapper.name.replace("mapper-", "learned_embeds-")).with_suffix(".bin")
