"""The page's pictures: grids of generated images, and similarity against training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from .....utils.files import write_atomically
from .....utils.grid import labelled_grid
from .....utils.images import load_image
from .....utils.statistics import Bootstrap, Estimate
from ....data.photos import find_images
from ....evaluation.config import ConceptSource
from ....evaluation.plot import COLOURS, INK, MARKERS, SOFT_INK
from ....evaluation.scores import IMAGE
from ....jobs.job import Job
from ..measurements import WORD, Condition, Measurements, condition_of
from ..plan import CURVES, TRUNCATED, Drawing
from ..work import Work

TILE = 96  # pixels at which an image is shown
COLUMNS = 6


class Grids:
    """Labelled grids of the images of the first seed. jobs: the main ones, done."""

    def __init__(self, work: Work, jobs: Sequence[Job]) -> None:
        self.work = work
        seed = work.config.train_seeds[0]
        drawings = [job.task for job in jobs if isinstance(job.task, Drawing)]
        self.drawings = {
            (drawing.concept.name, condition_of(drawing)): drawing
            for drawing in drawings
            if drawing.training is None or drawing.training.seed == seed
        }

    def methods(self, concept: ConceptSource, names: Sequence[str]) -> Image.Image:
        """Methods down, prompts across; the photos on top, the super-category word at the bottom."""
        conditions = {name: Condition(name) for name in names} | {"the word alone": WORD}
        return self._grid(concept, conditions, self.work.config.prompts[:COLUMNS])

    def truncations(self, concept: ConceptSource, measured: Measurements) -> Image.Image:
        """The truncations of the methods that have some down, prompts across."""
        rows = {
            f"{method}, {'all' if c.truncation is None else c.truncation} units": c
            for method in TRUNCATED
            for c in reversed(measured.slider(method))
            if measured.has(c)
        }
        return self._grid(concept, rows, self.work.config.prompts[:COLUMNS])

    def steps(self, concept: ConceptSource, measured: Measurements) -> Image.Image:
        """Methods down, steps across, the first prompt of the short set."""
        columns = sorted({step for method in CURVES for step in measured.steps(method)})
        prompt = self.work.config.short_prompts[0]
        rows = {method: measured.steps(method) for method in CURVES if measured.steps(method)}
        tiles = [
            [self._tile(concept, Condition(m, step), prompt) if step in steps else _blank() for step in columns]
            for m, steps in rows.items()
        ]
        return labelled_grid(tiles, list(rows), [f"{step} steps" for step in columns], f"{concept.name}: {prompt}")

    def _grid(self, concept: ConceptSource, rows: Mapping[str, Condition], prompts: Sequence[str]) -> Image.Image:
        photos = [_shown(path) for path in find_images(concept.folder)[0][: len(prompts)]]
        tiles = [[self._tile(concept, condition, prompt) for prompt in prompts] for condition in rows.values()]
        return labelled_grid([photos, *tiles], ["photos", *rows], list(prompts), concept.name)

    def _tile(self, concept: ConceptSource, condition: Condition, prompt: str) -> Image.Image:
        drawing = self.drawings[concept.name, condition]
        return _shown(self.work.gallery(drawing).path(self.work.recipes(drawing)[prompt][0]))


def write_steps_plot(curves: Mapping[str, Mapping[int, Estimate]], path: Path) -> None:
    """Image similarity against training steps, a line per method with its 95% intervals, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import; Agg draws without a screen
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (method, curve), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        steps, means = list(curve), [estimate.mean for estimate in curve.values()]
        axes.plot(steps, means, color=colour, marker=marker, markeredgecolor="white", linewidth=1.7, label=method)
        if all(estimate.low is not None for estimate in curve.values()):
            low, high = ([getattr(estimate, end) for estimate in curve.values()] for end in ("low", "high"))
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("training steps", color=INK)
    axes.set_ylabel("image similarity", color=INK)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=SOFT_INK)
    axes.legend(frameon=False, fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def step_curves(measured: Measurements, bootstrap: Bootstrap) -> dict[str, dict[int, Estimate]]:
    """Method -> steps -> image similarity over concepts, on the short set of images."""
    return {
        method: {
            step: bootstrap.over_groups(measured.tables([Condition(method, step)], [IMAGE]), lambda means: means[0, 0])
            for step in measured.steps(method)
        }
        for method in CURVES
        if measured.steps(method)
    }


def _shown(path: Path) -> Image.Image:
    return load_image(path).resize((TILE, TILE), Image.Resampling.BICUBIC)


def _blank() -> Image.Image:
    return Image.new("RGB", (TILE, TILE), "#eeeeee")
