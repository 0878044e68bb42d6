"""What a pipeline, a concept and the options of a call must be for concepts to be used in a pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.loaders import TextualInversionLoaderMixin
from diffusers.models import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ...utils.errors import UserError
from ..backbone.frame import Frame
from ..conditioning.composition import AnyConcept
from ..conditioning.tokens import check_placeholder
from ..methods import Method


def check_pipeline(pipe: Any) -> None:
    """Raise UserError unless `pipe` is of the Stable Diffusion family (1.x, 2.x, XL) and encodes prompts as it does."""
    unet, text_encoder = getattr(pipe, "unet", None), getattr(pipe, "text_encoder", None)
    second = getattr(pipe, "text_encoder_2", None)
    encoders = [encoder for encoder in (text_encoder, second) if encoder is not None]
    if (
        not isinstance(pipe, TextualInversionLoaderMixin)
        or not isinstance(unet, UNet2DConditionModel)
        or not isinstance(text_encoder, CLIPTextModel)
        or not isinstance(second, (CLIPTextModelWithProjection, type(None)))
        or unet.config["cross_attention_dim"] != sum(encoder.config.hidden_size for encoder in encoders)
        or not hasattr(pipe, "encode_prompt")
        or not {"prompt", "negative_prompt"} <= inspect.signature(pipe.encode_prompt).parameters.keys()
    ):
        raise UserError(
            f"{type(pipe).__name__}: concepts attach to pipelines of Stable Diffusion 1.x, 2.x and XL, which have CLIP "
            "text encoders, a UNet2DConditionModel of their width that is not compiled, and an encode_prompt method"
        )


def refuse_compiled(models: Sequence[nn.Module]) -> None:
    """Raise UserError for a U-Net or ControlNet that is compiled in place, whole or block by block: its graphs are made
    for one kind of block, and with a concept every layer reads something else."""
    if any(module._compiled_call_impl is not None for model in models for module in model.modules()):
        raise UserError(
            "the U-Net (or a ControlNet) is compiled, and its graphs know no concepts; load the pipeline anew, without "
            "compile() and compile_repeated_blocks()"
        )


def check_concept(placeholder: str, concept: AnyConcept, truncation: int | None, pipe: Any, frame: Frame) -> None:
    """Raise UserError unless the concept fits the pipeline, has the truncation, is done with learning, and answers to a
    word that the pipeline does not know."""
    check_placeholder(pipe.tokenizer, placeholder)
    if any(module.training for module in concept.modules() if isinstance(module, Method)):
        raise UserError(f"concept {placeholder}: in training mode its nested dropout is random; call .eval() on it")
    concept.check_truncation(truncation)
    if concept.frame.sizes != frame.sizes:
        raise UserError(
            f"concept {placeholder}: has text width {concept.frame.text_width} and {concept.frame.num_places} layers, "
            f"but the pipeline's base model has {frame.text_width} and {frame.num_places}; use the base model the "
            "concept was trained on"
        )


def refuse_options(options: Mapping[str, Any]) -> None:
    """Raise UserError for options of `encode_prompt` that change the text encoder for one call only."""
    if options.get("clip_skip") is not None:
        raise UserError("clip_skip: a concept was learned on the text encoder's last layer; leave clip_skip out")
    if options.get("lora_scale") not in (None, 1):
        raise UserError(
            f"cross_attention_kwargs scale {options['lora_scale']}: cannot be passed on to a concept's text; set the "
            "LoRA's weight by pipe.set_adapters(name, weight)"
        )


def refuse_image_prompts(model: nn.Module) -> None:
    """Raise UserError if an IP-Adapter is loaded, which needs processors of its own in the cross-attention layers."""
    if getattr(model, "encoder_hid_proj", None) is not None:
        raise UserError(
            "an IP-Adapter is loaded, and a concept cannot be used beside one; call pipe.unload_ip_adapter(), or leave "
            "the concept out of the prompt"
        )
