"""Rows beside an earlier state of this project, in turn: what starting a training imports, its steps, its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..timing import Ratio, Row, Timing, seconds
from .commands import BATCH, IMAGE_STEPS, LONG, Commands
from .config import BenchmarkConfig

# CPU seconds of the process, which do not grow when others use the machine; where a training begins has changed
IMPORTS = """
import importlib, importlib.util as find, time
for name in ("neti.training.coach.launch", "neti.training.launch"):
    if find.find_spec(name.split(".launch")[0]) and find.find_spec(name):
        importlib.import_module(name)
        break
print(time.process_time())
"""


def earlier_rows(config: BenchmarkConfig, commands: Commands, checkout: Path) -> list[Row]:
    """This state / the earlier one, each through its own commands, which must know the same keys."""
    scripts, package = checkout / "scripts", checkout / "build" / "typing"
    then = replace(commands, scripts=scripts, folder=commands.folder / "then", package=package)
    both = {"now": commands, "then": then}
    took: dict[tuple[str, str], list[float]] = {}
    for number in range(config.repeats):
        for name, its in both.items():
            imports = float(its.run(["-c", IMPORTS])[1])
            step = its.training_pace(f"step-{number}")
            image = its.image_pace(its.concept(f"step-{number}", LONG), f"images-{number}")
            for what, value in (("imports", imports), ("step", step), ("image", image)):
                took.setdefault((name, what), []).append(value)
    titles = {
        "imports": "imports of a training, CPU time",
        "step": f"training step of {BATCH}",
        "image": f"image of {IMAGE_STEPS} steps",
    }
    rows = []
    for what, title in titles.items():
        new, old = (Timing(tuple(took[name, what]), 0) for name in both)
        rows.append(
            Row(
                f"{title}, now / then",
                str(Ratio.of(new, old)),
                wanted="at most 1",
                note=f"{seconds(new.median)} / {seconds(old.median)}",
            )
        )
    return rows
