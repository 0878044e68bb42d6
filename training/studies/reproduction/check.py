"""Checking a plan before anything is done, and describing its size and what it will take."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ....models.generation.sampling import SamplingConfig
from ....models.methods import METHODS
from ....utils.errors import UserError
from ...config.run import RunConfig
from ...data.photos import find_images
from ...evaluation.config import folders_by_concept
from ...evaluation.scorer import ConceptPictures, find_pictures
from ...jobs.job import Job
from ...jobs.run import Pace, duration
from .config import ReproductionConfig
from .plan import CURVES, IMAGES, STEPS, TRUNCATED, Plan, Task, Training, learned_from, work_of

PAGE_MARK = "<!-- Written by scripts/reproduce_paper.py;"


def check_plan(config: ReproductionConfig) -> dict[str, RunConfig]:
    """Method -> its training configuration, as the plan would start it.

    Raises UserError for what can be known to be wrong beforehand: folders without images, settings of a method, several
    base models, truncations that a method does not have, an unknown sampler, patterns that no job's name matches, and a
    page in the place of which somebody else's file is.
    """
    pictures(config)
    SamplingConfig(config.num_denoising_steps, config.guidance_scale, config.scheduler)
    plan = Plan(config)
    trainings = [task for task in (*plan.search(), *plan.main(plan.longest())) if isinstance(task, Training)]
    for folder in dict.fromkeys(folder for training in trainings for folder in learned_from(training)[:1]):
        find_images(folder)
    first = {task.method: task for task in reversed(trainings)}
    runs = {method.name: first[method.name].config for method in config.method_plans}
    bases = dict.fromkeys(run.model.pretrained_model_name_or_path for run in runs.values())
    if len(bases) > 1:
        raise UserError(f"methods: they name several base models ({', '.join(bases)}); a plan is about one")
    for name in TRUNCATED:
        units = runs[name].model.mapper_hidden_dim if name in runs else None
        if units is not None and max(config.truncations, default=0) >= units:
            raise UserError(f"truncations = {list(config.truncations)}: {name} has {units} units; give fewer")
    for drawn in config.drawn_plans:
        method = METHODS[runs[drawn.method].model.method]
        if unknown := [key for key, _ in drawn.settings if not method.has_setting(key)]:
            raise UserError(f"drawn: {drawn.name}: {unknown[0]} is no setting of a concept of {method.name}")
    names = plan.possible_names() if config.only or config.redo else set()
    for key, pattern in (("only", config.only), ("redo", config.redo)):
        if pattern and not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{key} = {pattern!r} matches no job; a job's name is such as {min(names)}")
    _check_page(config)
    return runs


def pictures(config: ReproductionConfig) -> dict[str, ConceptPictures]:
    """Concept -> what its images are compared with. UserError for a folder that is missing or holds none."""
    references, masks = folders_by_concept(config.references), folders_by_concept(config.masks)
    return {s.name: find_pictures(s, references.get(s.name), masks.get(s.name)) for s in config.sources}


def describe_plan(config: ReproductionConfig, workers: int) -> str:
    """The plan's size and an estimate of its time before anything was timed, as a table to print."""
    methods, concepts, plan = config.method_plans, config.concept_sources, Plan(config)
    stages = {"search": plan.search(), "main, at most": plan.main(plan.longest())}
    stages["together"] = [task for stage in stages.values() for task in stage]
    lines = [
        f"methods   {len(methods)}: {', '.join(method.name for method in methods)}",
        f"concepts  {len(concepts)}: {', '.join(source.name for source in concepts)}; tuned on "
        f"{', '.join(source.name for source in config.tuning_sources) or 'none'}",
        f"images    {len(config.prompts)} prompts x {len(config.seeds)} seeds; in search and curves "
        f"{len(config.short_prompts)} x {len(config.short_seeds)}",
        *(f"{stage:<14} {_size(tasks, config, workers)}" for stage, tasks in stages.items()),
        f"the time is for {workers} worker{'s' if workers > 1 else ''}, {config.seconds_per_step:g} s per step and "
        f"{config.seconds_per_image:g} s per image",
        *(f"note: no method is called {name}, so the claims about it are not tested" for name in _absent(config)),
    ]
    return "\n".join(lines)


def seconds_per(config: ReproductionConfig) -> dict[str, float]:
    """What a unit of each kind of work takes, as the plan guesses."""
    return {STEPS: config.seconds_per_step, IMAGES: config.seconds_per_image}


def _size(tasks: Sequence[Task], config: ReproductionConfig, workers: int) -> str:
    amounts = {STEPS: 0.0, IMAGES: 0.0}
    for kind, amount in map(work_of, tasks):
        amounts[kind] += amount
    trainings = sum(isinstance(task, Training) for task in tasks)
    time = Pace(seconds_per(config), workers).estimate([Job(task.name, "", work=work_of(task)) for task in tasks])
    return (
        f"{len(tasks)} jobs: {trainings} trainings, {amounts[STEPS]:.0f} steps; {amounts[IMAGES]:.0f} images; "
        f"about {duration(time)}"
    )


def _check_page(config: ReproductionConfig) -> None:
    if not config.page.exists():
        return
    try:
        ours = PAGE_MARK in config.page.read_text(encoding="utf-8")
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UserError(f"page = {config.page}: was not written by this script and stays as it is; choose another")


def _absent(config: ReproductionConfig) -> Sequence[str]:
    there = [method.name for method in config.method_plans]
    return [name for name in dict.fromkeys((*CURVES, *TRUNCATED, "no_bypass", "compact")) if name not in there]
