"""The plan as jobs: trainings, and sets of images with their scores. Each can be done alone, by any worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from ....utils.config.parsing import parse_config, to_plain_dict
from ....utils.errors import UserError
from ....utils.hashing import json_hash
from ...config.run import RunConfig
from ...evaluation.config import ConceptSource
from ...jobs.job import Job
from .config import CONCEPT, MethodPlan, ReproductionConfig

SEARCH, MAIN = "search", "main"  # the stages; the second needs what the first has chosen
FULL, SHORT = "full", "short"  # the two sets of images
NETI = "neti"  # what all others are compared with
CURVES = (NETI, "xti", "textual_inversion")  # also measured after every number of steps
TRUNCATED = (NETI, "no_nested_dropout")  # also drawn at every truncation
WITHOUT_BYPASS = (NETI,)  # also drawn with the bypass switched off
STEPS, IMAGES = "steps", "images"  # the kinds of work


@dataclass(frozen=True)
class ImageSet:
    """Which images are drawn of a concept: every prompt with every seed."""

    name: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


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
    def config(self) -> RunConfig:
        """The run's configuration; its name and folder are given later. UserError for a setting that is wrong."""
        try:
            return parse_config(RunConfig, [*self.arguments, "--log.exp_name", self.name])
        except UserError as error:
            lines = str(error).splitlines()
            raise UserError("\n".join(f"methods: {self.method}: {line}" for line in lines)) from None

    @property
    def ingredients(self) -> dict[str, Any]:
        """All settings that the result depends on; the model and the photos are told apart by their contents."""
        config = self.config
        data = replace(config.data, train_data_dir=Path(), masks_dir=None, dataloader_num_workers=0)
        return {
            "checkpoints": self.checkpoints,
            "concept_dtype": config.log.concept_dtype,
            "data": to_plain_dict(data),
            "model": to_plain_dict(replace(config.model, pretrained_model_name_or_path="")),
            "optim": to_plain_dict(replace(config.optim, device="auto")),
        }


@dataclass(frozen=True)
class Drawing:
    """Images of a trained concept after `step` steps, drawn and scored. Without a training, images of the
    super-category word beside scores of the photos. truncation: units kept; bypass False: the textual bypass is off;
    variant: the name of the plan's entry that gives it these settings."""

    concept: ConceptSource
    images: ImageSet
    training: Training | None = None
    step: int = 0
    truncation: int | None = None
    bypass: bool = True
    variant: str = ""
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.images_name}.{self.images.name}"

    @property
    def images_name(self) -> str:
        """What tells its images from others, up to prompts and seeds: several sets share images."""
        if self.training is None:
            return f"word.{self.concept.name}"
        truncation = "" if self.truncation is None else f".truncation{self.truncation}"
        bypass = "" if self.bypass else ".bypass_off"
        variant = f".{self.variant}" if self.variant else ""
        return f"{self.training.name.removesuffix('.train')}.step{self.step}{variant}{truncation}{bypass}"


Task: TypeAlias = "Training | Drawing"


@dataclass(frozen=True)
class Choice:
    """The learning rate and the number of steps that a method is compared with."""

    rate: float
    step: int


@dataclass(frozen=True)
class Contents:
    """Hashes of the files that results depend on: the base model, the metric model, every folder of pictures."""

    model: str
    metric_model: str
    folders: Mapping[Path, str]  # of photos to learn from, and of masks
    compared: str = ""  # of all that images are compared with


class Plan:
    """The tasks of a configuration, and the jobs that they are once the files behind them are known."""

    def __init__(self, config: ReproductionConfig, contents: Contents | None = None) -> None:
        self.config, self.contents = config, contents
        self.full = ImageSet(FULL, config.prompts, config.seeds)
        self.short = ImageSet(SHORT, config.short_prompts, config.short_seeds)
        self._keys: dict[Task, str] = {}

    def search(self) -> list[Task]:
        """The words; every method at every learning rate on every tuning concept, drawn after every number of steps."""
        config, seed = self.config, self.config.train_seeds[0]
        tasks: list[Task] = [Drawing(concept, self.short) for concept in config.tuning_sources]
        for method in config.method_plans:
            for rate in method.rates:
                for concept in config.tuning_sources:
                    training = self._training(SEARCH, method, concept, seed, rate, method.steps)
                    tasks += [training, *(Drawing(concept, self.short, training, step) for step in method.steps)]
        return tasks

    def main(self, chosen: Mapping[str, Choice]) -> list[Task]:
        """The words, and every method as chosen on every concept and seed, with all that the claims are tested on.

        Method by method, so that what stands first in a plan is finished first, on all concepts.
        """
        config = self.config
        tasks: list[Task] = [Drawing(concept, self.full) for concept in config.concept_sources]
        for seed in config.train_seeds:
            for method in config.method_plans:
                rate, step = chosen[method.name].rate, chosen[method.name].step
                others = [drawn for drawn in config.drawn_plans if drawn.method == method.name]
                saves_all = method.name in CURVES or any(drawn.step for drawn in others)
                checkpoints = method.steps if saves_all else (step,)
                for concept in config.concept_sources:
                    training = self._training(MAIN, method, concept, seed, rate, checkpoints)
                    whole = Drawing(concept, self.full, training, step)
                    tasks += [training, whole]
                    if method.name in CURVES:
                        tasks += [replace(whole, images=self.short, step=each) for each in method.steps]
                    if method.name in TRUNCATED:
                        tasks += [replace(whole, truncation=kept) for kept in config.truncations]
                    if method.name in WITHOUT_BYPASS:
                        tasks.append(replace(whole, bypass=False))
                    tasks += [
                        replace(
                            whole,
                            variant=drawn.name,
                            settings=drawn.settings,
                            truncation=drawn.truncation,
                            step=drawn.step or step,
                        )
                        for drawn in others
                    ]
        return tasks

    def longest(self) -> dict[str, Choice]:
        """What the search may choose at worst, for an estimate of the time before it; all there is without a search."""
        return {method.name: Choice(method.rates[0], method.steps[-1]) for method in self.config.method_plans}

    def possible_names(self) -> set[str]:
        """The names of all jobs that there may be, whatever the search chooses."""
        pairs = {m.name: [Choice(rate, step) for rate in m.rates for step in m.steps] for m in self.config.method_plans}
        rounds = max(map(len, pairs.values()))
        choices = [{name: own[min(k, len(own) - 1)] for name, own in pairs.items()} for k in range(rounds)]
        return {task.name for tasks in (self.search(), *map(self.main, choices)) for task in tasks}

    def jobs(self, tasks: Sequence[Task]) -> list[Job]:
        """The tasks as jobs, in their order."""
        return [Job(task.name, self.key(task), task, _needs(task), work_of(task)) for task in tasks]

    def key(self, task: Task) -> str:
        """A hash of all that the task's result depends on."""
        if task not in self._keys:
            self._keys[task] = json_hash(self._ingredients(task))
        return self._keys[task]

    def _ingredients(self, task: Task) -> list[object]:
        contents = self._known_contents()
        if isinstance(task, Training):
            return [contents.model, *(contents.folders[folder] for folder in learned_from(task)), task.ingredients]
        images = [task.images.prompts, task.images.seeds]
        rules = [self.config.placeholder, self.config.resizing, task.concept.super_category, contents.metric_model]
        return [self.images_key(task), images, rules, task.concept.name, contents.compared]

    def images_key(self, drawing: Drawing) -> str:
        """A hash of all that decides a drawing's images but prompt and seed."""
        config = self.config
        sampling = [config.num_denoising_steps, config.guidance_scale, config.scheduler, config.torch_dtype]
        what: list[object] = [drawing.concept.super_category, self._known_contents().model]
        if drawing.training is not None:
            what = [self.key(drawing.training), drawing.step, drawing.truncation, drawing.bypass, *drawing.settings]
        return json_hash([what, sampling])

    def _known_contents(self) -> Contents:
        if self.contents is None:
            raise ValueError("a plan without contents has no keys")
        return self.contents

    def _training(
        self,
        stage: str,
        method: MethodPlan,
        concept: ConceptSource,
        seed: int,
        rate: float,
        checkpoints: tuple[int, ...],
    ) -> Training:
        settings = {
            "data.placeholder_token": f"<{concept.name}>",
            "data.super_category_token": concept.super_category,
            "eval.validation_prompts": "null",
            "optim.learning_rate": repr(rate),
            "optim.max_train_steps": checkpoints[-1],
            "optim.seed": seed,
            "log.report_to": "none",
        }
        own = [f"--{key}={value}" for key, value in settings.items()]
        photos = f"--data.train_data_dir={concept.folder}"  # a method's own arguments may name others
        arguments = ("--config_path", str(self.config.train_config), photos, *method.arguments, *own)
        arguments = tuple(argument.replace(CONCEPT, concept.name) for argument in arguments)
        return Training(stage, method.name, concept, seed, rate, checkpoints, arguments)


def work_of(task: Task) -> tuple[str, float]:
    """How much of which kind a task is: optimizer steps, or images."""
    if isinstance(task, Training):
        return STEPS, task.checkpoints[-1]
    return IMAGES, len(task.images.prompts) * len(task.images.seeds)


def learned_from(training: Training) -> list[Path]:
    """The folders of its photos and masks."""
    data = training.config.data
    return [folder for folder in (data.train_data_dir, data.masks_dir) if folder is not None]


def with_needed(jobs: Sequence[Job], among: Sequence[Job]) -> list[Job]:
    """The jobs, each after the one it needs."""
    known = {job.name: job for job in among}
    needed = [known[name] for job in jobs for name in (job.needs, job.name) if name is not None]
    return list({job.name: job for job in needed}.values())


def _needs(task: Task) -> str | None:
    return task.training.name if isinstance(task, Drawing) and task.training is not None else None
