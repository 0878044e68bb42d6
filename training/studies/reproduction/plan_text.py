"""Checking a plan before anything is done, and telling its size and what it will take."""

from __future__ import annotations

from collections.abc import Sequence

from ....models.generation.sampling import SamplingConfig
from ....utils.errors import UserError
from ...config.run import RunConfig
from ...data.photos import find_images
from .board import Seconds, duration
from .cells import CURVES, TRUNCATED, Training, amount, longest, main_cells, search_cells
from .plan_config import ReproductionConfig


def check_plan(config: ReproductionConfig) -> dict[str, RunConfig]:
    """Method -> its training configuration, as the plan would start it.

    Raises UserError for what can be known to be wrong beforehand: folders without images, settings of a method,
    several base models, truncations that a method does not have, an unknown sampler.
    """
    for source in (*config.concept_sources, *config.tuning_sources):
        find_images(source.folder)
    SamplingConfig(config.num_denoising_steps, config.guidance_scale, config.scheduler)
    first = {cell.method: cell for cell in reversed(search_cells(config)) if isinstance(cell, Training)}
    runs = {method.name: first[method.name].config for method in config.method_plans}
    bases = dict.fromkeys(run.model.pretrained_model_name_or_path for run in runs.values())
    if len(bases) > 1:
        raise UserError(f"methods: they name several base models ({', '.join(bases)}); a plan is about one")
    for name in TRUNCATED:
        units = runs[name].model.mapper_hidden_dim if name in runs else None
        if units is not None and max(config.truncations, default=0) >= units:
            raise UserError(f"truncations = {list(config.truncations)}: {name} has {units} units; give fewer")
    return runs


def describe_plan(config: ReproductionConfig, processes: int) -> str:
    """The plan's size and an estimate of its time before anything was timed, as a table to print."""
    methods, concepts = config.method_plans, config.concept_sources
    stages = {"search": search_cells(config), "main, at most": main_cells(config, longest(config))}
    seconds = Seconds(config)
    lines = [
        f"methods   {len(methods)}: {', '.join(method.name for method in methods)}",
        f"concepts  {len(concepts)}: {', '.join(source.name for source in concepts)}; tuned on "
        f"{', '.join(source.name for source in config.tuning_sources)}",
        f"images    {len(config.prompts)} prompts x {len(config.seeds)} seeds; in search and curves "
        f"{len(config.short_prompts)} x {len(config.short_seeds)}",
    ]
    stages["together"] = [cell for stage in stages.values() for cell in stage]
    for stage, cells in stages.items():
        steps, images = amount(cells)
        trainings = sum(isinstance(cell, Training) for cell in cells)
        time = duration(seconds.estimate(cells) / processes)
        lines.append(
            f"{stage:<14} {len(cells)} cells: {trainings} trainings, {steps} steps; {images} images; about {time}"
        )
    rates = f"{config.seconds_per_step:g} s per step and {config.seconds_per_image:g} s per image"
    return "\n".join(
        [
            *lines,
            f"the time is for {processes} process{'es' if processes > 1 else ''}, {rates}",
            *(f"note: no method is called {name}, so the claims about it are not tested" for name in _absent(config)),
        ]
    )


def _absent(config: ReproductionConfig) -> Sequence[str]:
    there = [method.name for method in config.method_plans]
    return [name for name in dict.fromkeys((*CURVES, *TRUNCATED, "no_bypass", "compact")) if name not in there]
