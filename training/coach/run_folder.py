"""Where one run keeps its files: the only place that knows their names, and the only one that removes any.

```
{exp_dir}/{exp_name}/
    config.yaml                      the configuration exactly as it was given
    derived.json                     what was computed from it (scaled learning rate, seed, ...), and the list of files
    concept-steps-{N}.safetensors    the concept after N optimizer steps
    checkpoints/step-{N}.pt          everything a resume needs
    validation/step-{N}.png          labelled grids, one per truncation and settings
    metrics.jsonl, logs/             the loss curve, for programs and for people
```

A file is listed in `derived.json` before it is written, and only listed files are ever removed: not what a user keeps
in the folder, and nothing outside of it, wherever the trackers write.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...models.generation.gallery import Variant, variant_suffix
from ...utils.errors import UserError
from ...utils.files import write_json

_OWN = re.compile(
    r"config\.yaml|derived\.json|metrics\.jsonl|(concept|encoder)-steps-\d+\.safetensors|checkpoints/step-\d+\.pt|"
    r"validation/step-\d+(-[^/]+)?\.png"
)
_EVENTS = re.compile(r"(?!/|.*\.\./).*events\.out\.tfevents\.[^/]+")  # TensorBoard's files
_HALF_WRITTEN = re.compile(r"(.*/)?\.([^/]+)\.\d+\.tmp")  # see `write_atomically`
_LOCK = ".lock"


class RunFolder:
    """The files of one run, by name. trackers: where TensorBoard writes, inside the folder or not."""

    def __init__(self, path: Path, trackers: Path) -> None:
        self.path = path
        self.trackers = trackers
        self.config = path / "config.yaml"
        self.derived = path / "derived.json"
        self.metrics = path / "metrics.jsonl"
        self.states_folder = path / "checkpoints"
        self.validation_folder = path / "validation"
        self._about: dict[str, Any] = {}
        self._listed: set[str] = set()

    def concept(self, step: int) -> Path:
        """The concept after `step` optimizer steps; `scripts/inference.py` finds it by `input_dir` and `iteration`."""
        return self.path / f"concept-steps-{step}.safetensors"

    def state(self, step: int) -> Path:
        """The training state after `step` optimizer steps."""
        return self.states_folder / f"step-{step}.pt"

    def validation(self, step: int, variant: Variant = ()) -> Path:
        """The validation grid after `step` optimizer steps, with this truncation and these settings."""
        return self.validation_folder / f"step-{step}{variant_suffix(variant, '-')}.png"

    def states(self) -> list[Path]:
        """The training states that exist, oldest first; none where a call was killed while it emptied the folder."""
        if self._record().get("abandoned"):
            return []
        found = {int(path.stem.removeprefix("step-")): path for path in self._own() if path.suffix == ".pt"}
        return [found[step] for step in sorted(found)]

    def concepts(self) -> list[Path]:
        """The concept files that exist, in no particular order."""
        return [path for path in self._own() if path.suffix == ".safetensors"]

    def is_empty(self) -> bool:
        """Whether nothing is there that a new run could destroy; what a killed one left half-written does not count."""
        return not self.path.exists() or all(map(self._is_leftover, self.path.iterdir()))

    def is_fresh(self) -> bool:
        """Whether the folder holds at most what a run writes before its first save."""
        record = self._record()
        return self.is_empty() or bool(record and (record.get("abandoned") or not self.concepts()))

    def foreign(self, *, resuming: bool) -> list[str]:
        """The files that are called as a run's are, and are not listed as this run's.

        resuming: a state that fits speaks for the folder, if the list itself is gone.
        """
        if resuming and not self.derived.exists():
            return []
        return sorted({self._name(path) for path in self._own()} - self._recorded())

    def derived_text(self) -> bytes:
        """`derived.json` as it is, which every call that writes here changes; empty if there is none."""
        return self.derived.read_bytes() if self.derived.is_file() else b""

    def check_places(self) -> None:
        """UserError for a file where a folder must be, a folder where a file must be, places without permission, and
        links that lead out of the run folder, behind which files would be removed."""
        for folder in (self.path, self.states_folder, self.validation_folder):
            require_folder(folder)
        for folder in (self.states_folder, self.validation_folder):
            if folder.is_symlink():
                raise UserError(
                    f"{folder} is a link, and a run keeps its files inside its folder; remove the link, and let "
                    "log.exp_dir say where there is room"
                )
        for file in (self.config, self.derived, self.metrics):
            if file.is_dir():
                raise UserError(f"{file} is a folder, where the run writes a file; move it away")

    def check_free(self) -> None:
        """UserError, naming it, if another process trains into the folder now."""
        if (self.path / _LOCK).exists():
            with self.lock():
                pass

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, made if need be, until the block ends or the process dies; UserError names who else does."""
        file = self.path / _LOCK
        lock = FileLock(file, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            holder = "another process"
            with suppress(OSError):
                holder = file.read_text(encoding="utf-8", errors="replace")[:100] or holder
            raise UserError(
                f"{holder} is training into {self.path}; wait until it is done, or choose another log.exp_name"
            ) from None
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}; choose another log.exp_dir") from None
        try:
            with suppress(OSError):
                file.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield
        finally:
            with suppress(OSError):
                file.unlink()  # while it is held: whoever has opened it meanwhile finds that it is not the folder's
            lock.release()

    def begin(self, about: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder this run's, with the lock held: what a killed call left goes, under `overwrite` all listed.

        about: what `derived.json` says beside the list. A kill on the way leaves a folder that is still listed, and
        marked. UserError if the disk refuses.
        """
        doomed = {path for path in self._entries() if self._is_leftover(path) and path.name != _LOCK}
        record = self._record()
        if overwrite or record.get("abandoned"):
            listed = self._recorded()
            if listed:
                write_json({**record, "files": sorted(listed), "abandoned": True}, self.derived)
            doomed |= {self.path / name for name in listed} - {self.derived}
        try:
            for path in doomed:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {path}: {error.strerror}; choose another log.exp_name") from None
        self._about = dict(about)
        self._listed = self._recorded() | {self._name(path) for path in self._own()} - {self.derived.name}
        self.expect(self.config, self.derived, self.metrics)

    def expect(self, *paths: Path) -> None:
        """List files as this run's, before they are written. UserError if the disk refuses."""
        names = set(map(self._name, paths))
        if not names <= self._listed:
            self._listed |= names
            write_json({**self._about, "files": sorted(self._listed)}, self.derived)

    def events(self) -> list[Path]:
        """TensorBoard's files, as far as they lie in the run folder."""
        inside = self.path / os.path.relpath(self.trackers, self.path)
        found = inside.rglob("*") if os.pardir not in inside.relative_to(self.path).parts else ()
        return [path for path in found if _EVENTS.fullmatch(self._name(path))]

    def rotate_states(self, keep: int | None) -> None:
        """Delete the oldest training states so that at most `keep` remain (None: all). Concepts are not touched."""
        if keep is not None:
            for path in self.states()[:-keep]:
                path.unlink(missing_ok=True)

    def _record(self) -> dict[str, Any]:
        """What `derived.json` says, {} if it is none of a run's."""
        try:
            record = json.loads(self.derived.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) and "run_folder" in record else {}

    def _recorded(self) -> set[str]:
        """The names on the list. Of a run of an older version, which had none: what is called as its files are."""
        record = self._record()
        if record and "files" not in record:
            return {self._name(path) for path in [*self._own(), *self.events()]}
        names = record.get("files")
        names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        return {name for name in names if _OWN.fullmatch(name) or _EVENTS.fullmatch(name)}  # a list may be forged

    def _entries(self) -> list[Path]:
        folders = (self.path, self.states_folder, self.validation_folder)
        return [path for folder in folders if folder.is_dir() for path in folder.iterdir()]

    def _own(self) -> list[Path]:
        """What is here under a name that a run gives."""
        return [path for path in self._entries() if _OWN.fullmatch(self._name(path))]

    def _is_leftover(self, path: Path) -> bool:
        """Whether the file is the lock, or was never finished."""
        match = _HALF_WRITTEN.fullmatch(self._name(path))
        return path.name == _LOCK or bool(match and _OWN.fullmatch(f"{match[1] or ''}{match[2]}"))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()


def require_folder(folder: Path) -> None:
    """UserError unless `folder` is one that can be written to, or can be made."""
    place = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    if not place.is_dir():
        raise UserError(f"{place} is no folder, and the run needs one there; move it, or choose another log.exp_dir")
    if not os.access(place, os.W_OK | os.X_OK | (os.R_OK if place == folder else 0)):
        raise UserError(f"no permission to write to the folder {place}; choose another log.exp_dir")
