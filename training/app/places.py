"""Where the app keeps its files: inside the outputs folder, and nowhere else.

```
{outputs}/{run}/            a training's own folder (coach/run_folder.py)
         /app/photos/       uploaded photos, a folder for each run
         /app/queue/        trainings that wait: {number}-{run}.yaml
         /app/runs/         what a started training was asked for, and how far it is: {run}.yaml, {run}.json
         /app/concepts/     concept files that were uploaded or made of one photo
         /app/pictures/     drawn images, a folder for each request
         /app/compare/      images and numbers of comparisons
         /app/cache/        what the browser uploads and is shown
```
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from ...models.conditioning.prompts import NAME
from ...utils.errors import UserError, shown

OWN = "app"  # the folder beside the runs; no run may be called so
_numbers = itertools.count()


class Places:
    """The folders of one outputs folder."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs.expanduser().resolve()
        own = self.outputs / OWN
        self.photos, self.queue, self.runs = own / "photos", own / "queue", own / "runs"
        self.concepts, self.pictures, self.compare, self.cache = (
            own / name for name in ("concepts", "pictures", "compare", "cache")
        )

    def make(self) -> None:
        """Make the folders. UserError if the disk refuses."""
        for folder in (self.photos, self.queue, self.runs, self.concepts, self.pictures, self.compare, self.cache):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot make {folder}: {error.strerror}; choose another outputs") from None

    def inside(self, path: str | Path) -> Path:
        """`path`, links followed. UserError if it leads out of the outputs folder."""
        found = Path(path).resolve()
        if not found.is_relative_to(self.outputs):
            raise UserError(f"{shown(str(path))} is not inside the outputs folder")
        return found

    def new_name(self, name: str) -> str:
        """A name for a new run, which prompts can hold as `{name}`. UserError for any other, or one that is taken."""
        name = name.strip()
        if not NAME.fullmatch(name) or len(name) > 60 or name == OWN:
            raise UserError(
                f"{shown(name)} is no name for a concept: begin with a letter, then letters, digits, _ or -"
            )
        places = (self.outputs / name, self.runs / f"{name}.yaml", self.concepts / f"{name}.safetensors")
        if any(place.exists() for place in places) or any(self.queue.glob(f"*-{name}.yaml")):
            raise UserError(f"there is a concept called {name} already; choose another name")
        return name

    def fresh(self, folder: Path, name: str = "") -> Path:
        """A place in `folder` that nothing else has; they sort by time."""
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}{next(_numbers):03d}"
        return folder / (f"{stamp}-{name}" if name else stamp)
