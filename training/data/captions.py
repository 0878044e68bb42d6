"""Captions: what a photo shows in words, from files beside it or from one file for the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...models.conditioning.prompts import SLOT, Prompt
from ...utils.errors import UserError, shown
from ...utils.files import MAX_JSON, parse_json_object, read_text
from ..config.run import DataConfig

CAPTION_SUFFIXES = (".txt", ".caption")
TABLE = "metadata.jsonl"  # Hugging Face's way: {"file_name": "0.png", "text": "..."} a line


class Captions(NamedTuple):
    """texts: one for each photo, None where there is none; files: where they stand; notes: on what is not used."""

    texts: list[str | None]
    files: set[Path]
    notes: list[str]


def read_captions(photos: Sequence[Path], config: DataConfig) -> Captions:
    """The captions of photos of one folder, each with `{}` where the concept belongs; people may write its placeholder.

    A caption that names the concept nowhere gets `data.caption_prefix` in front. UserError, naming the file, if it is
    not UTF-8 text, if there is no prefix, and for a photo with two different captions.
    """
    folder = config.train_data_dir
    table, notes = _read_table(folder / TABLE, {photo.name for photo in photos})
    texts: list[str | None] = []
    files = {folder / TABLE} if table else set()
    for photo in photos:
        beside = [path for path in map(photo.with_suffix, CAPTION_SUFFIXES) if path.is_file() and path != photo]
        found = {path.name: " ".join(read_text(path, "caption").split()) for path in beside}
        if photo.name in table:
            found[TABLE] = table[photo.name]
        if len(set(found.values())) > 1:
            raise UserError(f"{photo} has different captions in {' and '.join(found)}; keep one of them")
        files.update(beside)
        texts.append(_with_concept(*next(iter(found.items())), folder, config) if found else None)
    return Captions(texts, files, notes)


def _with_concept(source: str, text: str, folder: Path, config: DataConfig) -> str:
    """The caption with `{}` for the concept."""
    try:
        prompt = Prompt.parse(text, config.placeholder_token)
    except UserError as error:
        raise UserError(f"the caption {folder / source}: {error}") from None
    if others := [slot.text for slot in prompt.slots if slot.text != SLOT]:
        raise UserError(f"the caption {folder / source} has {', '.join(others)}; only {SLOT} is known there")
    if prompt.slots:
        return prompt.text
    if config.caption_prefix:
        return Prompt.parse(config.caption_prefix + text, config.placeholder_token).text.strip(" ,")
    raise UserError(
        f"the caption {folder / source} ({shown(text)}) has no {SLOT}; write {SLOT} where the concept belongs, or set "
        f'data.caption_prefix, such as "a photo of {SLOT}, ", which is put in front of every such caption'
    )


def _read_table(path: Path, names: set[str]) -> tuple[dict[str, str], list[str]]:
    """File name -> caption, of the files in `names`, and a note on the others. UserError for a line of another form."""
    if not path.is_file():
        return {}, []
    captions: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "table of captions", MAX_JSON).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json_object(line)
            name, text = row["file_name"], " ".join(row["text"].split())
            if not isinstance(name, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f'{path}, line {number} is not of the form {{"file_name": "photo.png", "text": "a photo of {SLOT}"}}'
            ) from None
        if captions.setdefault(name, text) != text:
            raise UserError(f"{path}, line {number}: {name} has another caption above; keep one of them")
    notes = []
    if unused := [name for name in captions if name not in names]:
        notes = [f"{TABLE}: {len(unused)} captions belong to no photo of the folder, such as {unused[0]!r}"]
    return {name: text for name, text in captions.items() if name in names}, notes
