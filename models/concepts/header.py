"""What a concept file says about its concept: JSON in the file's metadata, checked here and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ...utils.config.records import from_plain
from ...utils.errors import UserError, first_line, shorten, shown
from ...utils.files import parse_json_object, require_file
from ..backbone.frame import Frame
from ..conditioning.prompts import placeholder_problem
from .files import without_paths

FORMAT_VERSION = 1
METADATA_KEY = "neti"  # one key: safetensors writes several in an order that changes from run to run
MAX_PLACES = 1000
MAX_WIDTH = 2**16


@dataclass(frozen=True)
class Header:
    """The entries that have a meaning here; any others are metadata for people."""

    format_version: int
    method: str
    config: dict[str, Any]
    placeholder: str
    super_category: str
    num_layers: int  # P
    text_width: int
    frame: dict[str, Any] | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    base_model: str = ""
    step: int | None = None
    training_config: dict[str, Any] | None = None

    @property
    def sizes(self) -> Frame:
        """What the concept was made for."""
        if self.frame is None:  # written by an earlier version
            return Frame.of_sizes(self.num_layers, [self.text_width])
        return Frame.from_record(self.frame)


ABOUT = frozenset(entry.name for entry in fields(Header)) - {"base_model", "step", "training_config"}  # and these are
# `Concept.metadata`, with whatever else is there


def read_header(path: str | Path) -> tuple[Header, dict[str, Any]]:
    """The header of a concept file: its known entries, and all entries as they stand there. Tensors are not read.

    Raises UserError for a file that is missing, truncated, foreign or of another version, and for a header with
    entries of the wrong type, sizes that no model has, or a placeholder that prompts could not hold.
    """
    require_file(path, "concept file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise UserError(f"{path}: not a complete .safetensors file ({first_line(error)}); take another copy") from error
    if text is None:
        raise UserError(
            f"{path}: a .safetensors file, but not a concept written by this project; a Textual Inversion "
            "embedding becomes one by `scripts/concept.py convert --base_model`"
        )
    try:
        entries = parse_json_object(text)
        if entries.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{path}: concept format {shown(entries.get('format_version'))}, this version reads {FORMAT_VERSION}; "
                "update the project"
            )
        header = from_plain(Header, {name.name: entries[name.name] for name in fields(Header) if name.name in entries})
        _check(header)
    except UserError:
        raise
    except ValueError as error:
        raise damaged(path, error) from error
    return header, entries


def write_header(entries: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a concept file with these entries, in one order and without local paths."""
    return {METADATA_KEY: json.dumps(without_paths(entries), sort_keys=True)}


def damaged(path: str | Path, error: Exception) -> UserError:
    """What to raise for a file that begins as a concept and is none."""
    return UserError(f"{path}: the concept file is damaged or was edited ({first_line(error)}); take another copy")


def _check(header: Header) -> None:
    """ValueError for entries of the right types that make no sense."""
    if not (1 <= header.num_layers <= MAX_PLACES and 1 <= header.text_width <= MAX_WIDTH):
        raise ValueError(f"num_layers {header.num_layers} and text_width {header.text_width} are of no model")
    if header.step is not None and header.step < 0:
        raise ValueError(f"step {header.step} is below 0")
    if header.frame is not None:
        frame = Frame.from_record(header.frame)
        if (frame.num_places, frame.text_width) != (header.num_layers, header.text_width):
            raise ValueError("num_layers and text_width are not those of the frame")
    if problem := placeholder_problem(header.placeholder):
        raise ValueError(f"placeholder {shorten(repr(header.placeholder), 60)} {problem}")
