"""From a configuration to the parts of a run and the numbers that follow from it, every text and setting checked.

The numbers are computed once, printed, saved as `derived.json`, and never written back into the configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ...models.backbone.backbone import Backbone
from ...models.backbone.loading import WEIGHTS, check_text_to_image
from ...models.backbone.memory import estimate_memory
from ...models.concepts.concept import Concept
from ...models.concepts.files import MAPPER_NAME, explicit_files
from ...models.conditioning.prompts import SLOT, Prompt
from ...models.conditioning.tokens import check_placeholder, tokenize
from ...models.methods import METHODS, Method, Start
from ...models.methods.elite.encode import mean_word
from ...utils.errors import UserError
from ..config.options import MaskSource, OutsideMask, StartFrom
from ..config.run import METHOD_GROUPS, ConceptDtype, MixedPrecision, ModelConfig, RunConfig
from ..data.dataset import ConceptDataset

DTYPES = {MixedPrecision.no: torch.float32, MixedPrecision.fp16: torch.float16, MixedPrecision.bf16: torch.bfloat16}
PLANNING_PARTS = ("text_encoder",)  # whose weights a plan needs: the super category's embedding is in there
_HEADER_BYTES = 4096  # of a concept file: tensor names and metadata, roughly
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a number -> integers of that size


@dataclass(frozen=True)
class Setup:
    """The parts of a run. first_step: 0, or the step of the concept that training starts from.

    encoded: the word that an encoder gave for the photos, if the concept starts at one. notes: on the model.
    """

    dataset: ConceptDataset
    backbone: Backbone
    method: Method
    target_norm: float
    first_step: int
    encoded: list[float] | None = None
    notes: Sequence[str] = ()


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


def set_up(
    config: RunConfig,
    dataset: ConceptDataset,
    *,
    device: torch.device,
    parts: Collection[str] = WEIGHTS,
    backbone: Backbone | None = None,
    encoded: list[float] | None = None,
) -> Setup:
    """Load the model, create the concept, tokenise every text. `parts`: whose weights to load, see `Backbone`.

    backbone: the model, where it is loaded already. encoded: the word a resumed run started at; the encoder that gave
    it is not needed again.
    Raises UserError for whatever does not fit model or method: placeholder, super category, resolution, prompts,
    truncations, settings.
    """
    notes = check_text_to_image(config.model.pretrained_model_name_or_path, config.model.revision)
    if backbone is None:
        backbone = Backbone.from_pretrained(
            config.model.pretrained_model_name_or_path,
            revision=config.model.revision,
            dtype=DTYPES[config.optim.mixed_precision],
            device=device,
            components=parts,
        )
    backbone.to(device)  # the VAE of one that is shared was put aside by the run before
    placeholder, resolution, factor = config.data.placeholder_token, config.data.resolution, backbone.vae_scale_factor
    check_placeholder(backbone.tokenizer, placeholder)
    if resolution % factor:
        raise UserError(
            f"data.resolution = {resolution} must be a multiple of {factor}, the VAE's scale factor; "
            f"try {max(round(resolution / factor), 1) * factor}"
        )
    embedding = backbone.word_embedding(config.data.super_category_token, config.data.super_category_rule.value)
    if config.model.start_from is StartFrom.elite:
        if encoded is None:
            encoded = mean_word(dataset.paths, config.model.encoder or "miniature", backbone.frame).tolist()
        embedding = torch.tensor(encoded)
    method, first_step = _given_method(config, backbone) or (_new_method(config, dataset, backbone, embedding), 0)
    prompts = [Prompt.parse(prompt, placeholder).text for prompt in config.eval.validation_prompts or ()]
    tokenize(backbone.tokenizer, [*dataset.texts, *prompts], {SLOT: method.positions})
    for truncation in config.eval.validation_truncations:
        method.check_truncation(truncation)
    for settings in config.eval.variants:
        method.drawn_with(**(settings or {}))
    target_norm = getattr(method.config, "target_norm", None) or float(embedding.norm())
    return Setup(dataset, backbone, method, target_norm, first_step, encoded, notes)


def _new_method(config: RunConfig, dataset: ConceptDataset, backbone: Backbone, embedding: Tensor) -> Method:
    return METHODS[config.model.method].create(
        method_config(config.model),
        backbone.frame,
        Start(
            embedding=embedding.cpu(),
            generator=torch.Generator().manual_seed(dataset.seed),
            word=config.data.super_category_token,
            backbone=backbone,
            is_encoded=config.model.start_from is StartFrom.elite,
        ),
    )


def _given_method(config: RunConfig, backbone: Backbone) -> tuple[Method, int] | None:
    """The concept to start from and its step, in either format; None if none is given."""
    path = config.model.mapper_checkpoint_path
    if path is None:
        return None
    if path.suffix == ".safetensors":
        concept = Concept.load(path, backbone=backbone)
        step = concept.metadata.get("step", 0)
    else:  # the public code keeps its embeddings in a second file beside it
        embeds = path.with_name(path.name.replace("mapper", "learned_embeds", 1)).with_suffix(".bin")
        concept = explicit_files(path, embeds).load()
        concept.check_fits(backbone, source=str(path))
        match = MAPPER_NAME.fullmatch(path.name)
        step = int(match[1]) if match else 0
    if concept.method.name != config.model.method:
        raise UserError(
            f"model.method = {config.model.method}, but the concept in model.mapper_checkpoint_path is of method "
            f"{concept.method.name}; write model.method: {concept.method.name}"
        )
    wanted, own = (
        str(lock).lower() for lock in (config.model.key_lock, getattr(concept.method.config, "key_lock", False))
    )
    if wanted != own:
        raise UserError(
            f"model.key_lock = {wanted}, but the concept in model.mapper_checkpoint_path was trained with {own}; write "
            f"model.key_lock: {own}"
        )
    if not isinstance(step, int) or not 0 <= step < config.optim.max_train_steps:
        raise UserError(
            f"optim.max_train_steps = {config.optim.max_train_steps}, but the concept in model.mapper_checkpoint_path "
            f"is already at step {step}; ask for more steps"
        )
    return concept.method, step


def method_config(model: ModelConfig) -> Any:
    """The method's own config: its group of the model settings, or what it has of the others."""
    if model.method in METHOD_GROUPS:
        return getattr(model, model.method.value)
    settings = {
        "hidden_dim": model.mapper_hidden_dim,
        "use_positional_encoding": model.use_positional_encoding,
        "sigma_t": model.pe_sigmas.sigma_t,
        "sigma_l": model.pe_sigmas.sigma_l,
        "num_frequencies": model.num_pe_frequencies,
        "num_time_anchors": model.num_pe_time_anchors,
        "output_bypass": model.output_bypass,
        "bypass_alpha": model.bypass_alpha,
        "use_nested_dropout": model.use_nested_dropout,
        "nested_dropout_prob": model.nested_dropout_prob,
        "normalize_output": model.normalize_mapper_output,
        "norm_rule": model.norm_rule.value,
        "target_norm": model.target_norm,
        "use_time": model.use_time,
        "use_layer": model.use_layer,
        "num_vectors": model.num_vectors,
        "key_lock": model.key_lock,
    }
    config_class = METHODS[model.method].config_class
    return config_class(**{f.name: settings[f.name] for f in fields(config_class) if f.name in settings})


def weight_checksums(backbone: Backbone) -> dict[str, int]:
    """Part -> checksum of those of the base model's weights that are loaded: the sum of the numbers' bits as integers.

    The same on every device, and another as soon as one number is. UserError if a number is NaN or infinite.
    """
    sums = {}
    parts = {part: module for part, module in vars(backbone).items() if isinstance(module, nn.Module)}
    for part, module in parts.items():
        weights = [(name, weight.detach()) for name, weight in module.named_parameters() if not weight.is_meta]
        if broken := [name for name, weight in weights if not weight.isfinite().all()]:
            raise UserError(
                f"model.pretrained_model_name_or_path = {backbone.name}: its {part} holds NaN or infinity (in "
                f"{broken[0]}) in {weights[0][1].dtype}; take another copy of the model"
            )
        if weights:
            bits = [weight.contiguous().view(_BITS[weight.element_size()]) for _, weight in weights]
            sums[part] = int(torch.stack([numbers.sum(dtype=torch.int64) for numbers in bits]).sum())
    return sums


def make_plan(config: RunConfig, setup: Setup, processes: int) -> RunPlan:
    """Derive everything; needs no U-Net weights."""
    optim = config.optim
    samples = optim.train_batch_size * optim.gradient_accumulation_steps * processes
    learning_rate = optim.learning_rate
    if optim.scale_lr:
        learning_rate = learning_rate * optim.gradient_accumulation_steps * optim.train_batch_size * processes
    bytes_per_number = 2 if config.log.concept_dtype is ConceptDtype.fp16 else 4
    return RunPlan(
        seed=setup.dataset.seed,
        processes=processes,
        samples_per_step=samples,
        learning_rate=learning_rate,
        target_norm=setup.target_norm,
        layers=setup.backbone.frame.place_names,
        trained_parameters=sum(parameter.numel() for parameter in setup.method.parameters()),
        concept_bytes=sum(t.numel() for t in setup.method.state_dict().values()) * bytes_per_number + _HEADER_BYTES,
        first_step=setup.first_step,
    )


def describe(config: RunConfig, setup: Setup, plan: RunPlan) -> str:
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
        "masks": data.masks.value,
        "texts": f"{own_captions} images with captions; {len(setup.dataset.texts)} different texts in all",
        "concept": f"{data.placeholder_token}, a kind of {data.super_category_token}, norm {plan.target_norm:.4f}"
        + ", which gives it its keys" * config.model.key_lock,
        "start": "the super category"
        if setup.encoded is None
        else "the word that ELITE's encoder gives for the photos",
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
    if data.masks is not MaskSource.none:
        lines["masks"] += f", weight {data.effective_mask_weight:g} outside them"
        lines["masks"] += ", where the frozen model is the target" * (data.outside_mask is OutsideMask.frozen)
    if config.dry_run:  # counting takes longer than the first steps on a small model
        lines["memory"] = f"{_memory(config, setup, plan)} (estimate for one training step on each device)"
    notes = [f"note: {note}" for note in (*setup.notes, *setup.dataset.notes)]
    return "\n".join([*(f"{name:<14} {text}" for name, text in lines.items()), *notes])


def _memory(config: RunConfig, setup: Setup, plan: RunPlan) -> str:
    with torch.no_grad():
        rows = len(setup.method.vectors(torch.zeros(1, dtype=torch.long)).words)
    return str(
        estimate_memory(
            setup.backbone,
            trained=plan.trained_parameters,
            text_rows=rows,
            dtype=DTYPES[config.optim.mixed_precision],
            batch_size=config.optim.train_batch_size,
            latent_side=config.data.resolution // setup.backbone.vae_scale_factor,
            gradient_checkpointing=config.optim.gradient_checkpointing,
        )
    )
