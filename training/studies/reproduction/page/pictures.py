"""The page's pictures: grids of generated images, and likeness against training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from .....utils.files import write_atomically
from .....utils.grid import labelled_grid
from .....utils.images import load_image
from .....utils.statistics import Estimate
from ....data.photos import find_images
from ....evaluation.config import ConceptSource
from ....evaluation.plot import COLOURS, INK, MARKERS, SOFT_INK
from ....jobs.job import Job
from ..claims import Claims
from ..measurements import Condition, condition_of
from ..plan import CURVES, SHORT, Drawing
from ..work import Work

TILE = 96  # pixels at which an image is shown
COLUMNS = 5
SHOWN_PROMPTS = (  # where photos, style and place can be told apart; plans without them show their first prompts
    "A photo of a {}",
    "A photo of {} in the jungle",
    "A photo of {} on a beach",
    "A painting of {} in the style of Monet",
    "App icon of {}",
)


class Grids:
    """Labelled grids of the images of the first seed. jobs: the main ones that are done."""

    def __init__(self, work: Work, jobs: Sequence[Job]) -> None:
        self.work = work
        seed = work.config.train_seeds[0]
        drawings = [job.task for job in jobs if isinstance(job.task, Drawing)]
        self.drawings = {
            (drawing.concept.name, condition_of(drawing)): drawing
            for drawing in drawings
            if drawing.training is None or drawing.training.seed == seed
        }

    def grid(self, shows: Mapping[str, Condition]) -> Image.Image | None:
        """Conditions down, the photos on top, prompts across; of the first concept that has all of which there is any.

        None without such a concept.
        """
        known = {condition for _, condition in self.drawings}
        wanted = {label: condition for label, condition in shows.items() if condition in known}
        for concept in self.work.config.concept_sources if wanted else ():
            if all((concept.name, condition) in self.drawings for condition in wanted.values()):
                return self._grid(concept, {label: self.drawings[concept.name, c] for label, c in wanted.items()})
        return None

    def _grid(self, concept: ConceptSource, drawings: Mapping[str, Drawing]) -> Image.Image:
        short = any(drawing.images.name == SHORT for drawing in drawings.values())
        prompts = self.work.config.short_prompts if short else self.work.config.prompts
        wanted = [prompt for prompt in SHOWN_PROMPTS if prompt in prompts] or list(prompts[:COLUMNS])
        photos = [_shown(path) for path in find_images(concept.folder)[0][: len(wanted)]]
        tiles = [[self._tile(drawing, prompt) for prompt in wanted] for drawing in drawings.values()]
        photos += [_blank()] * (len(wanted) - len(photos))
        return labelled_grid([photos, *tiles], ["photos", *drawings], wanted, concept.name)

    def _tile(self, drawing: Drawing, prompt: str) -> Image.Image:
        return _shown(self.work.gallery(drawing).path(self.work.recipes(drawing)[prompt][0]))


def write_steps_plot(curves: Mapping[str, Mapping[int, Estimate]], path: Path) -> None:
    """Likeness against training steps, a line per method with its 95% intervals, as PNG."""
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
    axes.set_ylabel("likeness", color=INK)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=SOFT_INK)
    axes.legend(frameon=False, fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def step_curves(claims: Claims) -> dict[str, dict[int, Estimate]]:
    """Method -> steps -> likeness over concepts, on the short set of images."""
    found = {m: {s: claims.mean(Condition(m, s)) for s in claims.measured.steps(m)} for m in CURVES}
    return {m: {s: estimate for s, estimate in curve.items() if estimate} for m, curve in found.items() if curve}


def _shown(path: Path) -> Image.Image:
    return load_image(path).resize((TILE, TILE), Image.Resampling.BICUBIC)


def _blank() -> Image.Image:
    return Image.new("RGB", (TILE, TILE), "#eeeeee")
