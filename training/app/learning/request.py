"""What a person wants learned, as the configuration of scripts/train.py, which checks all of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from ....utils.config.parsing import parse_config
from ....utils.config.yaml_text import load_yaml
from ....utils.errors import UserError, shown
from ...config.run import RunConfig
from ..config import AppConfig
from ..places import Places

DEFAULT = "as in the recipe"
GRIDS = 4  # of a run: enough to see where it goes
NO_MASKS = "none"
MASKS = [("none", NO_MASKS), ("mask files among the photos", "folder"), ("the photos' transparency", "alpha")]


@dataclass(frozen=True)
class Lesson:
    """One training. photos: their folder; word: the super category; steps None: as the recipe says.

    encoder: whose word for the photos it starts from; None: from the super category.
    """

    name: str
    photos: Path
    word: str
    method: str = "neti"
    steps: int | None = None
    preset: str = DEFAULT
    masks: str = NO_MASKS
    encoder: str | None = None

    @classmethod
    def of(
        cls,
        photos: str | None,
        name: str,
        word: str,
        method: str = "neti",
        steps: float | None = None,
        preset: str = DEFAULT,
        masks: str = NO_MASKS,
        encoder: str | None = None,
    ) -> Lesson:
        """What stands in the page's fields. UserError for one that is empty."""
        if not photos:
            raise UserError("drop three to six photos first")
        if not word.strip():
            raise UserError("say in one plain word what kind of thing it is, such as car, cat or mug")
        return cls(name, Path(photos), word, method, int(steps) if steps else None, preset, masks, encoder)


def presets(app: AppConfig) -> list[str]:
    """What can be laid on top of a recipe, the recipe alone first; presets of drawing are none of training."""
    groups = {field.name for field in fields(RunConfig)}
    files = sorted(app.presets.glob("*.yaml")) if app.presets.is_dir() else []
    return [DEFAULT, *(path.stem for path in files if groups.issuperset(load_yaml(path)))]


def run_config(lesson: Lesson, app: AppConfig, places: Places) -> RunConfig:
    """The configuration: the method's recipe, the preset, and what was chosen. UserError for whatever is wrong."""
    if lesson.method not in app.methods:
        raise UserError(f"method {shown(lesson.method)}: there are {', '.join(app.methods)}")
    if lesson.preset not in presets(app):
        raise UserError(f"preset {shown(lesson.preset)}: there are {', '.join(presets(app))}")
    files = [app.recipes.get(lesson.method) or app.recipes["neti"]]
    files += [app.presets / f"{lesson.preset}.yaml"] if lesson.preset != DEFAULT else []
    name, word = places.new_name(lesson.name), " ".join(lesson.word.split())
    options = {
        "log.exp_name": name,
        "log.exp_dir": places.outputs,
        "log.report_to": "none",
        "data.train_data_dir": places.inside(lesson.photos),
        "data.placeholder_token": f"<{name}>",
        "data.super_category_token": word or "object",
        "data.masks": lesson.masks,
        "model.method": lesson.method,
        "optim.device": app.device,
    }
    options |= {"data.super_category_rule": "mean"} if " " in word else {}
    options |= {"model.pretrained_model_name_or_path": app.base_model} if app.base_model else {}
    if lesson.encoder is not None:
        options |= {"model.start_from": "elite", "model.encoder": lesson.encoder}
    if lesson.steps is not None:
        every = max(lesson.steps // GRIDS, 1)
        options |= {"optim.max_train_steps": lesson.steps, "log.save_steps": every, "eval.validation_steps": every}
    argv = [word for path in files for word in ("--config_path", str(path))]
    return parse_config(RunConfig, argv + [f"--{key}={value}" for key, value in options.items()])
