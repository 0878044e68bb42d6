"""What was tried to make training faster, each beside the code as it is, and what further ideas could save at most."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from ....models.attention.layers import cross_attention_layers
from ....models.backbone.backbone import Backbone
from ....models.conditioning.tokens import tokenize
from .config import BenchmarkConfig
from .rows import Row, seconds
from .timing import Ratio, Timing, count_flops, in_turn
from .workshop import PLACEHOLDER, Workshop, floor, space_time_attention, within

PROMPT = f"a photo of a {PLACEHOLDER}"


def variant_rows(config: BenchmarkConfig, workshop: Workshop) -> list[Row]:
    """Measured: mapper calls, the optimizer, memory format, compilation (CUDA). Counted: what was not built."""
    rows, step = _small_parts(config, workshop)
    rows.append(_channels_last(config, workshop.backbone))
    if workshop.backbone.unet.device.type == "cuda":  # on a CPU, compiling takes longer than a training
        rows.append(_compiled(config, workshop))
    return rows + _counted(config, workshop.backbone, step)


def _small_parts(config: BenchmarkConfig, workshop: Workshop) -> tuple[list[Row], Timing]:
    """The mapper and the optimizer, and the step that they are part of."""
    trainer = workshop.trainer(config.batch)
    method, batch = trainer.setup.method, trainer.batches.get(0, 0)
    groups = [{"params": list(method.parameters())}]
    default, fused = (torch.optim.AdamW(groups, lr=0.0, fused=choice) for choice in (None, True))

    def mapper(timesteps: torch.Tensor, generator: object) -> None:
        vectors = method.vectors(timesteps, generator=generator)  # type: ignore[arg-type]
        assert vectors.bypass is not None
        (vectors.words.sum() + vectors.bypass.sum()).backward()

    def sample_by_sample() -> None:
        for timestep, generator in zip(batch.timesteps, batch.generators, strict=True):
            mapper(timestep[None], generator)

    works: dict[str, Callable[[], object]] = {
        "step": workshop.steps(trainer, config.steps),
        "calls": sample_by_sample,
        "call": lambda: mapper(batch.timesteps, batch.generators),
        "default": default.step,
        "fused": fused.step,
    }
    found = in_turn(works, config.repeats, workshop.backbone.unet.device)
    step = found["step"].median / config.steps

    def saving(what: str, before: str, after: str) -> Row:
        saved = 100 * (found[before].median - found[after].median) / step
        times = f"{seconds(found[before].median)} to {seconds(found[after].median)}"
        return Row(what, f"{saved:.1f}% of a step saved", note=times)

    return [
        saving("in use: one mapper call per batch, not one per sample", "calls", "call"),
        saving("not in use: the fused AdamW", "default", "fused"),
    ], found["step"]


def _channels_last(config: BenchmarkConfig, backbone: Backbone) -> Row:
    other = replace(backbone, unet=copy.deepcopy(backbone.unet).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    rows = 2 * backbone.num_layers * backbone.tokenizer.model_max_length
    works = {
        name: within(partial(space_time_attention, one), floor(one, config.batch, config.steps, rows))
        for name, one in (("as it is", backbone), ("channels_last", other))
    }
    found = in_turn(works, config.repeats, backbone.unet.device)
    return Row(
        "not in use: the U-Net in channels_last / as it is",
        str(Ratio.of(found["channels_last"], found["as it is"])),
        note=" / ".join(seconds(found[name].median / config.steps) for name in ("channels_last", "as it is")),
    )


def _compiled(config: BenchmarkConfig, workshop: Workshop) -> Row:
    works = {
        name: workshop.steps(workshop.trainer(config.batch, compile_unet=choice), config.steps)
        for name, choice in (("plain", False), ("compiled", True))
    }
    found = in_turn(works, config.repeats, workshop.backbone.unet.device, count=False)
    return Row(
        "optim.compile_unet: training step / without it",
        str(Ratio.of(found["compiled"], found["plain"])),
        note=" / ".join(seconds(found[name].median / config.steps) for name in ("compiled", "plain")),
    )


def _counted(config: BenchmarkConfig, backbone: Backbone, step: Timing) -> list[Row]:
    """Savings in floating-point operations that were too small to build."""
    tokens = tokenize(backbone.tokenizer, [PROMPT], [PLACEHOLDER])
    length, prefix = tokens.ids.shape[1], int(tokens.slots[PLACEHOLDER][0].int().argmax())
    with space_time_attention(backbone):
        floor_flops = count_flops(floor(backbone, config.batch, config.steps, 2 * backbone.num_layers * length))
        forward = count_flops(torch.no_grad()(lambda: _forward(backbone, 2 * backbone.num_layers * length)))
    text = step.flops - floor_flops
    attention = [backbone.unet.get_submodule(layer.path) for layer in cross_attention_layers(backbone.unet)]
    projections = sum(2 * length * linear.weight.numel() for layer in attention for linear in (layer.to_k, layer.to_v))
    return [
        Row(
            "not built: the tokens before the placeholder encoded once for all layers and timesteps",
            "",
            counted=f"at most {100 * text / step.flops * prefix / length:.1f}% of a step saved",
            note=f'{prefix} of {length} tokens in "a photo of a {{}}"; all others see the placeholder',
        ),
        Row(
            "not built: keys and values of a prompt projected once for all seeds",
            "",
            counted=f"at most {100 * projections / forward:.1f}% of a denoising step saved",
        ),
    ]


def _forward(backbone: Backbone, rows: int) -> None:
    unet = backbone.unet
    latent = torch.zeros(1, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    context = torch.zeros(1, rows, backbone.text_width)
    unet(latent.to(unet.device, unet.dtype), 0, encoder_hidden_states=context.to(unet.device, unet.dtype))
