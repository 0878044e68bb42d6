"""The plan as cells, the units of work: a training, or a set of images with its measurement. Each can be done alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from ....utils.config.parsing import parse_config, to_plain_dict
from ....utils.errors import UserError
from ...config.run import RunConfig
from ...evaluation.config import ConceptSource
from .plan_config import MethodPlan, ReproductionConfig

SEARCH, MAIN = "search", "main"  # the stages; the second needs what the first has chosen
FULL, SHORT = "full", "short"  # the two sets of images
CURVES = ("neti", "xti", "textual_inversion")  # also judged after every number of steps
TRUNCATED = ("neti", "no_nested_dropout")  # also drawn at every truncation
WITHOUT_BYPASS = ("neti",)  # also drawn with the bypass switched off


@dataclass(frozen=True)
class ImageSet:
    """Which images are drawn of a concept: every prompt with every seed."""

    name: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompts) * len(self.seeds)


@dataclass(frozen=True)
class Training:
    """One method learns one concept. checkpoints: the steps after which the concept is kept; the last one ends it."""

    stage: str
    method: str
    concept: ConceptSource
    seed: int
    rate: float
    checkpoints: tuple[int, ...]
    arguments: tuple[str, ...]  # of scripts/train.py, complete but for the run's name and folder

    @property
    def name(self) -> str:
        return f"{self.stage}.{self.method}.{self.concept.name}.seed{self.seed}.rate{self.rate:g}.train"

    @property
    def requires(self) -> Training | None:
        """The cell that must be done before."""
        return None

    @property
    def steps(self) -> int:
        """Optimizer steps to do."""
        return self.checkpoints[-1]

    @property
    def config(self) -> RunConfig:
        """The run's configuration; its name and folder are given later. UserError for a setting that is wrong."""
        try:
            return parse_config(RunConfig, [*self.arguments, "--log.exp_name", self.name])
        except UserError as error:
            lines = str(error).splitlines()
            raise UserError("\n".join(f"methods: {self.method}: {line}" for line in lines)) from None

    @property
    def ingredients(self) -> dict[str, Any]:
        """All settings that the result depends on; the model and the images are told apart by their contents."""
        config = self.config
        data = replace(config.data, train_data_dir=Path(), dataloader_num_workers=0)
        return to_plain_dict(
            {
                "checkpoints": self.checkpoints,
                "concept_dtype": config.log.concept_dtype,
                "data": to_plain_dict(data),
                "model": to_plain_dict(replace(config.model, pretrained_model_name_or_path="")),
                "optim": to_plain_dict(replace(config.optim, device="auto")),
            }
        )


@dataclass(frozen=True)
class Drawing:
    """Images of a trained concept after `step` steps, drawn and measured; of the super-category word, if `training` is
    None: the rails. truncation: hidden units kept; bypass False: drawn with the textual bypass switched off."""

    concept: ConceptSource
    images: ImageSet
    training: Training | None = None
    step: int = 0
    truncation: int | None = None
    bypass: bool = True

    @property
    def name(self) -> str:
        if self.training is None:
            return f"rails.{self.concept.name}.{self.images.name}"
        truncation = "" if self.truncation is None else f".truncation{self.truncation}"
        bypass = "" if self.bypass else ".bypass_off"
        return f"{self.training.name.removesuffix('.train')}.step{self.step}{truncation}{bypass}.{self.images.name}"

    @property
    def requires(self) -> Training | None:
        """The cell that must be done before."""
        return self.training


Cell: TypeAlias = "Training | Drawing"


@dataclass(frozen=True)
class Choice:
    """The learning rate and the number of steps that a method is compared with."""

    rate: float
    step: int


def full_set(config: ReproductionConfig) -> ImageSet:
    return ImageSet(FULL, config.prompts, config.seeds)


def short_set(config: ReproductionConfig) -> ImageSet:
    return ImageSet(SHORT, config.short_prompts, config.short_seeds)


def search_cells(config: ReproductionConfig) -> list[Cell]:
    """The rails; every method at every learning rate on every tuning concept, judged after every number of steps."""
    images, seed = short_set(config), config.train_seeds[0]
    cells: list[Cell] = [Drawing(concept, images) for concept in config.tuning_sources]
    for method in config.method_plans:
        for rate in method.rates:
            for concept in config.tuning_sources:
                training = _training(config, SEARCH, method, concept, seed, rate, method.steps)
                cells.append(training)
                cells += [Drawing(concept, images, training, step) for step in method.steps]
    return cells


def main_cells(config: ReproductionConfig, chosen: Mapping[str, Choice]) -> list[Cell]:
    """Every method as chosen on every concept and seed, with all that the claims are tested on; and the rails."""
    full, short = full_set(config), short_set(config)
    cells: list[Cell] = [Drawing(concept, full) for concept in config.concept_sources]
    for concept in config.concept_sources:
        for method in config.method_plans:
            rate, step = chosen[method.name].rate, chosen[method.name].step
            checkpoints = method.steps if method.name in CURVES else (step,)
            for seed in config.train_seeds:
                training = _training(config, MAIN, method, concept, seed, rate, checkpoints)
                whole = Drawing(concept, full, training, step)
                cells += [training, whole]
                if method.name in CURVES:
                    cells += [replace(whole, images=short, step=each) for each in method.steps]
                if method.name in TRUNCATED:
                    cells += [replace(whole, truncation=kept) for kept in config.truncations]
                if method.name in WITHOUT_BYPASS:
                    cells.append(replace(whole, bypass=False))
    return cells


def longest(config: ReproductionConfig) -> dict[str, Choice]:
    """What the search may choose at worst, for an estimate of the time before it."""
    return {method.name: Choice(method.rates[0], method.steps[-1]) for method in config.method_plans}


def amount(cells: Sequence[Cell]) -> tuple[int, int]:
    """(optimizer steps, images) in all the cells."""
    steps = sum(cell.steps for cell in cells if isinstance(cell, Training))
    return steps, sum(len(cell.images) for cell in cells if isinstance(cell, Drawing))


def _training(
    config: ReproductionConfig,
    stage: str,
    method: MethodPlan,
    concept: ConceptSource,
    seed: int,
    rate: float,
    checkpoints: tuple[int, ...],
) -> Training:
    settings = {
        "data.train_data_dir": concept.folder,
        "data.placeholder_token": f"<{concept.name}>",
        "data.super_category_token": concept.super_category,
        "eval.validation_prompts": "null",
        "optim.learning_rate": repr(rate),
        "optim.max_train_steps": checkpoints[-1],
        "optim.seed": seed,
        "log.report_to": "none",
    }
    own = [f"--{key}={value}" for key, value in settings.items()]
    arguments = ("--config_path", str(config.train_config), *method.arguments, *own)
    return Training(stage, method.name, concept, seed, rate, checkpoints, arguments)
