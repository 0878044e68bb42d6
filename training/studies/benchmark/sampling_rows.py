"""Rows about making images: beside the stock pipeline, the conditioning alone, and by number of seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.utils import logging

from ....models.backbone.backbone import Backbone
from ....models.conditioning.tokens import tokenize
from ....models.generation.sampling import (
    SCHEDULERS,
    SamplingConfig,
    decode,
    denoise,
    initial_latents,
    prepare_conditioning,
)
from .config import BenchmarkConfig, Subject
from .rows import Row, seconds
from .timing import Ratio, in_turn
from .workshop import PLACEHOLDER, new_method, stock_attention

PROMPT, PLAIN_PROMPT = f"a photo of a {PLACEHOLDER} on a beach", "a photo of a dog on a beach"


def sampling_rows(config: BenchmarkConfig, subject: Subject, backbone: Backbone) -> list[Row]:
    """All seeds of a prompt beside stock diffusers; the conditioning beside the stock text encoder."""
    seeds = range(config.seeds)
    works = {"ours": images(backbone, seeds, config.sampling_steps), "stock": _stock(config, backbone)}
    found = in_turn(works, config.repeats, backbone.unet.device)
    aim = "at most 1.05" if (subject, config.seeds) == (Subject.sd14, 8) else ""
    rows = [
        Row(
            f"{config.seeds} seeds of a prompt, {config.sampling_steps} steps / StableDiffusionPipeline, plain prompt",
            str(Ratio.of(found["ours"], found["stock"])),
            counted=f"{found['ours'].flops / found['stock'].flops:.2f}",
            wanted=aim,
            note=f"{seconds(found['ours'].median)} / {seconds(found['stock'].median)}",
        )
    ]
    return rows + _conditioning_rows(config, subject, backbone)


def seed_rows(config: BenchmarkConfig, backbone: Backbone) -> list[Row]:
    """Seconds for a prompt by number of seeds, and for its conditioning, which all seeds share."""
    works: dict[str, Callable[[], object]] = {
        str(count): images(backbone, range(count), config.sampling_steps) for count in config.seed_counts
    }
    works["conditioning"] = _conditioning(backbone, config.sampling_steps)
    found = in_turn(works, config.repeats, backbone.unet.device)
    shared = found.pop("conditioning").median
    return [
        Row(
            f"one prompt, {count} seeds, {config.sampling_steps} steps",
            f"{seconds((timing.median - shared) / int(count))} per image",
            note=f"{seconds(timing.median)} in all, {seconds(shared)} of it for the conditioning",
        )
        for count, timing in found.items()
    ]


def images(backbone: Backbone, seeds: Sequence[int], steps: int) -> Callable[[], None]:
    """Images of a new concept, one per seed, from prompt to pixels."""
    method = new_method(backbone)
    sampling = SamplingConfig(steps=steps)

    @torch.inference_mode()
    def work() -> None:
        conditioning = prepare_conditioning(backbone, PROMPT, {PLACEHOLDER: method}, sampling)
        latents = initial_latents(backbone, seeds, sampling)
        decode(backbone, denoise(backbone, conditioning, latents, sampling))

    return work


def _stock(config: BenchmarkConfig, backbone: Backbone) -> Callable[[], None]:
    """The same number of images by diffusers' own pipeline: same scheduler, steps, guidance, batch and precision."""
    logging.set_verbosity_error()  # the import complains about image processors that nothing here needs
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    scheduler_class, changes = SCHEDULERS[SamplingConfig().scheduler]
    own: Any = backbone.scheduler
    pipeline: Any = StableDiffusionPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=scheduler_class.from_config(own.config, **changes),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def work() -> None:
        with stock_attention(backbone):
            pipeline(
                PLAIN_PROMPT,
                num_images_per_prompt=config.seeds,
                num_inference_steps=config.sampling_steps,
                guidance_scale=SamplingConfig().guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in range(config.seeds)],
            )

    return work


def _conditioning(backbone: Backbone, steps: int) -> Callable[[], object]:
    method, sampling = new_method(backbone), SamplingConfig(steps=steps)

    def work() -> None:
        conditioning = prepare_conditioning(backbone, PROMPT, {PLACEHOLDER: method}, sampling)
        for step in range(steps):
            conditioning.at(step)

    return work


def _conditioning_rows(config: BenchmarkConfig, subject: Subject, backbone: Backbone) -> list[Row]:
    encoder: Any = backbone.text_encoder
    count = config.conditioning_steps * backbone.frame.num_places
    ids = tokenize(backbone.tokenizer, [PLAIN_PROMPT], []).ids.to(encoder.device)
    single_calls = min(config.single_calls, count)

    @torch.no_grad()
    def batched() -> None:
        encoder(ids.expand(count, -1))

    @torch.no_grad()
    def one_by_one() -> None:
        for _ in range(single_calls):
            encoder(ids)

    works = {
        "ours": _conditioning(backbone, config.conditioning_steps),
        "batched": batched,
        "one by one": one_by_one,
    }
    found = in_turn(works, config.repeats, encoder.device)
    ours, singles = found["ours"], found["one by one"].median * count / single_calls
    what = f"conditioning of {config.conditioning_steps} timesteps x {backbone.frame.num_places} layers"
    return [
        Row(
            f"{what} / one stock text-encoder pass of {count} rows",
            str(Ratio.of(ours, found["batched"])),
            counted=f"{ours.flops / found['batched'].flops:.2f}",
            wanted="at most 1.1" if (subject, config.conditioning_steps) == (Subject.sd14, 50) else "",
            note=f"{seconds(ours.median)} / {seconds(found['batched'].median)}",
        ),
        Row(
            f"{what}: speed-up over {count} single calls",
            f"{singles / ours.median:.1f} x",
            note=f"{seconds(singles)}, from {single_calls} calls",
        ),
    ]
