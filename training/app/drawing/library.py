"""The concepts in the outputs folder: what each is, and a picture of it."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from ....models.concepts.concept import Concept
from ....models.concepts.files import ConceptFiles, files_at, find_files
from ....models.concepts.header import Header, read_header
from ....models.conditioning.prompts import NAME
from ....utils.config.yaml_text import load_yaml
from ....utils.errors import UserError, shown
from ....utils.hashing import file_hash
from ....utils.images import SquareMode, load_image, to_square
from ...data.photos import find_images
from ..places import OWN, Places

THUMBNAIL = 192  # pixels
_NO_NAME = re.compile(r"[^\w-]+")


@dataclass(frozen=True)
class Entry:
    """One concept. name: unique in the library, and good for `{name}` in a prompt. header None: of the public code."""

    name: str
    files: ConceptFiles
    header: Header | None

    @property
    def caption(self) -> str:
        """What stands below its picture."""
        return self.name if self.header is None else f"{self.name} · {self.header.method}"

    def load(self) -> Concept:
        """UserError for a file that is broken, foreign or asks to execute code."""
        return self.files.load()


class Library:
    """Whatever lies in the outputs folder now: it is read anew each time, so that a finished run is there at once."""

    def __init__(self, places: Places) -> None:
        self.places = places

    def entries(self) -> list[Entry]:
        """The final concept of every run, then the single files; newest first. What cannot be read is left out."""
        found: dict[str, Entry] = {}
        for place in self._places():
            try:
                files = find_files(place) if place.is_dir() else files_at(place)
                header = None if files.embeds else read_header(self.places.inside(files.concept))[0]
            except UserError:
                continue  # no run, one without a concept yet, or somebody else's file
            name = self._name(place, found)
            found[name] = Entry(name, files, header)
        return sorted(found.values(), key=lambda entry: -entry.files.concept.stat().st_mtime)

    def __getitem__(self, name: str) -> Entry:
        """UserError for a name that is not there."""
        entries = {entry.name: entry for entry in self.entries()}
        if name not in entries:
            known = ", ".join(entries) or "none yet"
            raise UserError(f"there is no concept called {shown(name)}; the library holds: {known}")
        return entries[name]

    def with_hash(self, content: str) -> Entry:
        """The concept whose files have this content, as a recipe records it. UserError if none has."""
        for entry in self.entries():
            if file_hash(*entry.files.paths) == content:
                return entry
        raise UserError(
            f"the concept that this picture shows is not in the library (its content is {content[:19]}...); "
            "add its file, and drop the picture again"
        )

    def add(self, upload: Path) -> Entry:
        """Take a concept file that was uploaded, after reading all of it as any concept. UserError if it is none."""
        name = self.places.new_name(_NO_NAME.sub("_", upload.stem))
        if upload.suffix != ".safetensors":
            raise UserError(f"{upload.name} is no concept file; a concept of this project ends in .safetensors")
        try:
            Concept.load(upload)
        except UserError as error:
            raise UserError(str(error).replace(str(upload), upload.name)) from None
        shutil.copyfile(upload, self.places.concepts / f"{name}.safetensors")
        return self[name]

    def thumbnail(self, entry: Entry) -> Path:
        """A small square picture of the concept: its first photo where that can be found, else its name."""
        stat = entry.files.concept.stat()
        path = self.places.cache / "thumbnails" / f"{entry.name}-{stat.st_mtime_ns}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            (_photo_of(entry) or _card(entry.name)).save(path)
        return path

    def _places(self) -> Iterator[Path]:
        """Where concepts may be: run folders, those one level deeper (of many runs), and single files."""
        folders = [self.places.outputs, *_folders(self.places.outputs)]
        for folder in folders:
            yield from _folders(folder)
        yield from sorted(self.places.concepts.glob("*.safetensors"))

    def _name(self, place: Path, taken: dict[str, Entry]) -> str:
        name = _NO_NAME.sub("_", place.stem if place.is_file() else place.name)
        name = name if NAME.fullmatch(name) else f"c_{name}"
        numbers = (f"{name}-{number}" for number in range(2, len(taken) + 3))
        return name if name not in taken else next(other for other in numbers if other not in taken)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name != OWN and path.name[0] != ".")


def _photo_of(entry: Entry) -> Image.Image | None:
    """The first photo that the concept was learned from, as its run's configuration names it."""
    for place in (entry.files.concept.with_suffix(".png"), *_training_photos(entry.files.concept.parent)):
        try:
            return to_square(load_image(place), THUMBNAIL, SquareMode.crop)
        except UserError:
            continue
    return None


def _training_photos(run: Path) -> list[Path]:
    try:
        return find_images(Path(load_yaml(run / "config.yaml")["data"]["train_data_dir"]))[0][:1]
    except (UserError, LookupError, TypeError):
        return []


@functools.lru_cache(maxsize=64)
def _card(text: str) -> Image.Image:
    """A plain square with the concept's name."""
    card = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "#e8eaf6")
    ImageDraw.Draw(card).text((THUMBNAIL // 2,) * 2, text[:18], fill="#3949ab", anchor="mm", font_size=20)
    return card
