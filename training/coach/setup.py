"""From a configuration to the parts a run is made of, with every text and setting checked against the model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ...models.backbone.backbone import Backbone
from ...models.backbone.loading import WEIGHTS
from ...models.concepts.concept import Concept
from ...models.concepts.files import MAPPER_NAME, explicit_files
from ...models.conditioning.prompts import SLOT, Prompt
from ...models.conditioning.tokens import check_placeholder, tokenize
from ...models.methods import METHODS, Method, Start
from ...utils.errors import UserError
from ..config.run import METHOD_GROUPS, MixedPrecision, ModelConfig, RunConfig
from ..data.photos import ConceptDataset

DTYPES = {MixedPrecision.no: torch.float32, MixedPrecision.fp16: torch.float16, MixedPrecision.bf16: torch.bfloat16}
PLANNING_PARTS = ("text_encoder",)  # whose weights a plan needs: the super category's embedding is in there


@dataclass(frozen=True)
class Setup:
    """The parts of a run. first_step: 0, or the step of the concept that training starts from."""

    dataset: ConceptDataset
    backbone: Backbone
    method: Method
    target_norm: float
    first_step: int


def set_up(
    config: RunConfig, dataset: ConceptDataset, *, device: torch.device, parts: Collection[str] = WEIGHTS
) -> Setup:
    """Load the model, create the concept, tokenise every text. `parts`: whose weights to load, see `Backbone`.

    Raises UserError for whatever does not fit the model: placeholder, super category, resolution, prompts, truncations.
    """
    backbone = Backbone.from_pretrained(
        config.model.pretrained_model_name_or_path,
        revision=config.model.revision,
        dtype=DTYPES[config.optim.mixed_precision],
        device=device,
        components=parts,
    )
    placeholder = config.data.placeholder_token
    check_placeholder(backbone.tokenizer, placeholder)
    _check_resolution(config, backbone)

    embedding = backbone.word_embedding(config.data.super_category_token, config.data.super_category_rule.value)
    first_step = 0
    if config.model.mapper_checkpoint_path is not None:
        concept = _load_concept(config.model.mapper_checkpoint_path, backbone)
        method, first_step = concept.method, int(concept.metadata.get("step", 0))
        if method.name != config.model.method:
            raise UserError(
                f"model.method = {config.model.method}, but the concept in model.mapper_checkpoint_path is of method "
                f"{method.name}; write model.method: {method.name}"
            )
        if first_step >= config.optim.max_train_steps:
            raise UserError(
                f"optim.max_train_steps = {config.optim.max_train_steps}, but the concept in "
                f"model.mapper_checkpoint_path is already at step {first_step}; ask for more steps"
            )
    else:
        method = METHODS[config.model.method].create(
            method_config(config.model),
            backbone.frame,
            Start(
                embedding=embedding.cpu(),
                generator=torch.Generator().manual_seed(dataset.seed),
                word=config.data.super_category_token,
                backbone=backbone,
            ),
        )
    prompts = [Prompt.parse(prompt, placeholder).text for prompt in config.eval.validation_prompts or ()]
    tokenize(backbone.tokenizer, [*dataset.texts, *prompts], {SLOT: method.positions})
    for truncation in config.eval.validation_truncations:
        method.check_truncation(truncation)
    target_norm = getattr(method.config, "target_norm", None) or float(embedding.norm())
    return Setup(dataset, backbone, method, target_norm, first_step)


def _check_resolution(config: RunConfig, backbone: Backbone) -> None:
    factor = backbone.vae_scale_factor
    if config.data.resolution % factor:
        nearest = max(round(config.data.resolution / factor), 1) * factor
        raise UserError(
            f"data.resolution = {config.data.resolution} must be a multiple of {factor}, the VAE's scale factor; "
            f"try {nearest}"
        )


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
    }
    config_class = METHODS[model.method].config_class
    return config_class(**{f.name: settings[f.name] for f in fields(config_class) if f.name in settings})


def _load_concept(path: Path, backbone: Backbone) -> Concept:
    """A concept to start from, in either format; the public code keeps its embeddings in a second file beside it."""
    if path.suffix == ".safetensors":
        return Concept.load(path, backbone=backbone)
    embeds = path.with_name(path.name.replace("mapper", "learned_embeds", 1)).with_suffix(".bin")
    concept = explicit_files(path, embeds).load()
    concept.check_fits(backbone, source=str(path))
    match = MAPPER_NAME.fullmatch(path.name)
    concept.metadata["step"] = int(match[1]) if match else 0
    return concept
