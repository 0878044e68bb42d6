"""What follows from a configuration: computed once, printed, saved as `derived.json`, never written back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...models.backbone.memory import MemoryEstimate, estimate_memory
from ..config.run import ConceptDtype, RunConfig
from .setup import DTYPES, Setup

_HEADER_BYTES = 4096  # of a concept file: tensor names and metadata, roughly


@dataclass(frozen=True)
class RunPlan:
    """The derived values of one run.

    learning_rate: the effective one, after scale_lr. samples_per_step: batch x accumulation x processes.
    target_norm: the norm the mapper's output is rescaled to. concept_bytes: size of a saved concept, roughly.
    layers: names of the cross-attention layers in execution order. first_step: where counting starts.
    """

    seed: int
    processes: int
    samples_per_step: int
    learning_rate: float
    target_norm: float
    layers: tuple[str, ...]
    trained_parameters: int
    concept_bytes: int
    first_step: int


def effective_learning_rate(config: RunConfig, processes: int) -> float:
    """The learning rate AdamW gets: as given, or under scale_lr times accumulation, batch size and processes."""
    optim = config.optim
    if not optim.scale_lr:
        return optim.learning_rate
    return optim.learning_rate * optim.gradient_accumulation_steps * optim.train_batch_size * processes


def make_plan(config: RunConfig, setup: Setup, processes: int) -> RunPlan:
    """Derive everything; needs no U-Net weights."""
    optim = config.optim
    bytes_per_number = 2 if config.log.concept_dtype is ConceptDtype.fp16 else 4
    return RunPlan(
        seed=setup.dataset.seed,
        processes=processes,
        samples_per_step=optim.train_batch_size * optim.gradient_accumulation_steps * processes,
        learning_rate=effective_learning_rate(config, processes),
        target_norm=setup.target_norm,
        layers=setup.backbone.frame.place_names,
        trained_parameters=sum(parameter.numel() for parameter in setup.method.parameters()),
        concept_bytes=sum(t.numel() for t in setup.method.state_dict().values()) * bytes_per_number + _HEADER_BYTES,
        first_step=setup.first_step,
    )


def estimate(config: RunConfig, setup: Setup) -> MemoryEstimate:
    """The memory one training step will take on each device."""
    with torch.no_grad():
        rows = len(setup.method.vectors(torch.zeros(1, dtype=torch.long)).words)
    return estimate_memory(
        setup.backbone,
        trained=sum(parameter.numel() for parameter in setup.method.parameters()),
        text_rows=rows,
        dtype=DTYPES[config.optim.mixed_precision],
        batch_size=config.optim.train_batch_size,
        latent_side=config.data.resolution // setup.backbone.vae_scale_factor,
        gradient_checkpointing=config.optim.gradient_checkpointing,
    )


def describe(config: RunConfig, setup: Setup, plan: RunPlan, memory: MemoryEstimate | None = None) -> str:
    """The plan as the table that is printed before training and, with the memory it will take, by --dry_run."""
    data, optim, log, evaluation = config.data, config.optim, config.log, config.eval
    scaled = f" ({optim.learning_rate:g} x {plan.samples_per_step})" if optim.scale_lr else ""
    own_captions = sum(caption is not None for caption in setup.dataset.captions)
    grids = "none"
    if evaluation.validation_prompts:
        size = f"{len(evaluation.validation_prompts)} prompts x {len(evaluation.seeds)} seeds"
        grids = f"every {evaluation.validation_steps} steps, {size}, {evaluation.num_denoising_steps} denoising steps"
    lines = {
        "run": f"{log.run_dir}, seed {plan.seed}",
        "model": f"{setup.backbone.name}, {len(plan.layers)} cross-attention layers: {' '.join(plan.layers)}",
        "images": f"{len(setup.dataset)} in {data.train_data_dir}, {data.resolution} px ({data.effective_square_mode})",
        "texts": f"{own_captions} images with captions; {len(setup.dataset.texts)} different texts in all",
        "concept": f"{data.placeholder_token}, a kind of {data.super_category_token}, norm {plan.target_norm:.4f}",
        "method": f"{config.model.method}, {plan.trained_parameters:,} trained parameters; "
        f"a concept file takes about {plan.concept_bytes / 2**20:.2f} MiB",
        "steps": f"{plan.first_step} to {optim.max_train_steps}, {plan.samples_per_step} samples each: batch "
        f"{optim.train_batch_size} x accumulation {optim.gradient_accumulation_steps} x processes {plan.processes}",
        "learning rate": f"{plan.learning_rate:g}{scaled}, {optim.lr_scheduler}",
        "precision": f"{optim.mixed_precision} (mapper always float32), gradient checkpointing "
        f"{'on' if optim.gradient_checkpointing else 'off'}",
        "saves": f"every {log.save_steps} steps",
        "grids": grids,
    }
    if memory is not None:
        lines["memory"] = f"{memory} (estimate for one training step on each device)"
    notes = [f"note: {note}" for note in setup.dataset.notes]
    return "\n".join([*(f"{name:<14} {text}" for name, text in lines.items()), *notes])
