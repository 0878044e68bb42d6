"""What a training step costs before any device is chosen: its arithmetic, and the memory it reads and writes.

The real code runs on the "meta" device (shapes and dtypes, no storage), so Stable Diffusion v1.4's size takes seconds
on any machine. Every operation counts: floating-point operations of matrix products, convolutions and attention; bytes
of all inputs and outputs, as if nothing were fused but attention, and no cache helped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ....models.backbone.backbone import Backbone
from ....models.backbone.denoiser import Denoiser
from ....models.backbone.memory import estimate_memory
from ....models.conditioning.conditioning import ConceptVectors, Conditioning, condition
from ....models.conditioning.prompts import SLOT
from ....models.conditioning.tokens import tokenize
from ....models.generation.run import DTYPES
from ....models.methods import NeTI, NeTIConfig, Start
from ..random_weights import sd14, sdxl
from ..timing import CPU_ATTENTION, GIB, Row, fused_attention
from .config import BenchmarkConfig

STEPS, SECONDS = 1000, 90  # the goal, of batch 8 on an H100


@dataclass(frozen=True)
class Cost:
    """Floating-point operations and bytes of a piece of work."""

    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def count(work: Callable[[], object]) -> Cost:
    """What doing it once costs; it is really done."""
    flops = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    traffic = _Traffic()
    with traffic, flops:
        work()
    return Cost(flops.get_total_flops(), traffic.bytes)


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of every operation's inputs and outputs; a view moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


class _FusedAttention(TorchFunctionMode):
    """Attention as one operation: on the "meta" device PyTorch would take it apart."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        causal, scale = kwargs.get("is_causal", False), kwargs.get("scale")
        return fused_attention(*args[:3], 0.0, causal, attn_mask=None, scale=scale)[0]


@dataclass(frozen=True)
class StepCost:
    """One training step of NeTI: mapper (both ways), text encoder, U-Net.

    unet_backward_to_latents: what its backward pass would cost if it did not stop at the first layer that reads text.
    """

    mapper: Cost
    text: Cost
    text_backward: Cost
    unet: Cost
    unet_backward: Cost
    unet_backward_to_latents: Cost

    @property
    def whole(self) -> Cost:
        return self.mapper + self.text + self.text_backward + self.unet + self.unet_backward


def step_cost(backbone: Backbone, batch: int) -> StepCost:
    """The cost of one step on a backbone on "meta"."""
    frame = backbone.frame
    start = Start(torch.ones(frame.text_width), torch.Generator().manual_seed(0))
    method = NeTI.create(NeTIConfig(), frame, start)  # on the CPU: it is small, and its arithmetic is the same
    tokens = tokenize(backbone.tokenizer, ["a photo of a {}"] * batch, {SLOT: 1})
    denoiser = Denoiser(backbone)

    def mapper() -> None:
        vectors = method.vectors(torch.zeros(batch, dtype=torch.long))
        assert vectors.bypass is not None
        torch.autograd.backward([vectors.words.sum(), vectors.bypass.sum()])

    mapper_cost = count(mapper)
    with torch.device("meta"), _FusedAttention():
        size = (frame.num_places, batch, frame.text_width)
        vectors = ConceptVectors(torch.zeros(size, requires_grad=True), torch.zeros(size, requires_grad=True))
        side = backbone.latent_size
        latents = torch.zeros(batch, backbone.latent_channels, side, side)
        timesteps = torch.zeros(batch, dtype=torch.long)
        made: dict[str, Any] = {}

        def encode() -> None:
            size = (backbone.image_size, backbone.image_size)
            made["text"] = condition(backbone.text, tokens, {SLOT: vectors}, frame, image_size=size)
            made["parts"] = {"keys": made["text"].keys, "values": made["text"].values}
            made["parts"] |= {name: part for name, part in made["text"].added.items() if part.requires_grad}

        def denoise() -> None:
            read = made["read"] = {name: part.detach().requires_grad_() for name, part in made["parts"].items()}
            added = {name: read.get(name, part) for name, part in made["text"].added.items()}
            conditioning = Conditioning(read["keys"], read["values"], made["text"].slots, added=added)
            made["loss"] = F.mse_loss(denoiser(latents, timesteps, conditioning), latents)

        def encode_backward() -> None:
            gradients = [made["read"][name].grad for name in made["parts"]]
            torch.autograd.backward(list(made["parts"].values()), gradients)

        text, unet, unet_backward = count(encode), count(denoise), count(lambda: made["loss"].backward())
        text_backward = count(encode_backward)
        latents.requires_grad_()
        denoise()
        to_latents = count(lambda: made["loss"].backward())
        return StepCost(mapper_cost, text, text_backward, unet, unet_backward, to_latents)


def text_per_layer(backbone: Backbone) -> Backbone:
    """The same model, for which every layer is a place with words of its own: 70 on Stable Diffusion XL, not 11."""
    frame = backbone.frame
    layers = tuple(replace(layer, place=layer.index) for layer in frame.layers)
    other = replace(backbone)
    other.frame = replace(frame, layers=layers)
    return other


def family_rows(config: BenchmarkConfig) -> list[Row]:
    """Stable Diffusion XL beside v1.4, each at its own resolution; and what it would cost with text for every layer."""
    dtype = DTYPES[config.dtype.value]
    xl = sdxl("meta", dtype)
    rows = []
    for name, backbone in {
        "sd14, 512 px": sd14("meta", dtype),
        "sdxl, 1024 px": xl,
        "sdxl, were its text encoded per layer": text_per_layer(xl),
    }.items():
        cost, places = step_cost(backbone, 1), backbone.frame.num_places
        memory = estimate_memory(
            backbone,
            trained=0,
            text_rows=places,
            dtype=dtype,
            batch_size=1,
            latent_side=backbone.latent_size,
            gradient_checkpointing=False,
        )
        share = (cost.text + cost.text_backward).flops / cost.whole.flops
        note = f"{places} rows of text, {share:.0%} of it; frozen {memory.frozen / GIB:.2f} GiB, "
        note += f"activations {memory.activations / GIB:.2f} GiB"
        rows.append(Row(name, "", counted=f"{cost.whole.flops / 1e12:.3g} TFLOP", note=note))
    return rows


def arithmetic_rows(config: BenchmarkConfig) -> list[Row]:
    """Where a training step's arithmetic is, at Stable Diffusion v1.4's size and the configured batch and precision."""
    cost = step_cost(sd14("meta", DTYPES[config.dtype.value]), config.batch)
    unet = cost.unet + cost.unet_backward
    parts = {
        "mapper, forward and backward": cost.mapper,
        "text encoder, forward": cost.text,
        "text encoder, backward": cost.text_backward,
        "U-Net, forward": cost.unet,
        "U-Net, backward": cost.unet_backward,
        f"a whole step of {config.batch}": cost.whole,
    }
    rows = [
        Row(name, "", counted=f"{part.flops / 1e12:.3g} TFLOP", note=f"{part.bytes / GIB:.3g} GiB read and written")
        for name, part in parts.items()
    ]
    pace = STEPS / SECONDS
    return [
        *rows,
        Row(
            "the U-Net's backward pass / one that does not stop at the first layer that reads the text",
            "",
            counted=f"{cost.unet_backward.flops / cost.unet_backward_to_latents.flops:.3f}",
        ),
        Row("a whole step / the U-Net's part of it", "", counted=f"{cost.whole.flops / unet.flops:.2f}"),
        Row(
            f"{STEPS} steps of {config.batch} in {SECONDS} s take",
            "",
            counted=f"{pace * cost.whole.flops / 1e12:.0f} TFLOP/s",
            note=f"{pace * cost.whole.bytes / 1e12:.2g} TB/s, less where operations are fused",
        ),
    ]
