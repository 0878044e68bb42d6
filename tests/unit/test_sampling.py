"""The sampling loop, against diffusers' own pipeline where the two can do the same."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers import DDPMScheduler, DPMSolverMultistepScheduler
from frames import created, packed
from tiny_backbone import stock_pipeline
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.generation.sampling import (
    SCHEDULERS,
    NaNImageError,
    SamplingConfig,
    decode,
    denoise,
    initial_latents,
    make_scheduler,
    prepare_conditioning,
    step_generators,
)
from neti.models.methods import NeTI, NeTIConfig
from neti.training.data.latents import LatentCache
from neti.utils.errors import UserError

CONFIG = SamplingConfig(steps=3)
PROMPT = "a photo of a <toy>"


def concept(backbone: Backbone) -> NeTI:
    generator = torch.Generator().manual_seed(0)
    return created(NeTI, NeTIConfig(), 16, torch.ones(backbone.frame.text_width), generator)


def sample(backbone: Backbone, config: SamplingConfig = CONFIG, seeds: tuple[int, ...] = (1,), **kwargs: Any) -> Tensor:
    conditioning = prepare_conditioning(backbone, PROMPT, {"<toy>": concept(backbone)}, config, **kwargs)
    return denoise(backbone, conditioning, initial_latents(backbone, seeds, config), config)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_without_a_concept_it_is_the_stock_pipeline(
    make_tiny_backbone: Callable[..., Backbone], prediction_type: str
) -> None:
    backbone = make_tiny_backbone(prediction_type=prediction_type)
    config = SamplingConfig(steps=5, guidance_scale=4.0)
    conditioning = prepare_conditioning(backbone, "a photo of a teddy", {}, config, negative_prompt="a painting")
    latents = initial_latents(backbone, [3, 4], config)
    own: Any = backbone.scheduler
    pipeline = stock_pipeline(backbone, DPMSolverMultistepScheduler.from_config(own.config))
    expected = pipeline(
        ["a photo of a teddy"] * 2,
        negative_prompt=["a painting"] * 2,
        num_inference_steps=5,
        guidance_scale=4.0,
        latents=latents.clone(),
        output_type="latent",
    ).images
    ours = denoise(backbone, conditioning, latents, config)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    stock_image = pipeline.image_processor.postprocess(
        backbone.vae.decode(expected[:1] / backbone.vae.config["scaling_factor"]).sample
    )[0]
    difference = np.asarray(decode(backbone, ours[:1])[0]).astype(int) - np.asarray(stock_image).astype(int)
    assert abs(difference).max() <= 1


def test_the_concept_changes_the_picture(tiny_backbone: Backbone) -> None:
    conditioning = prepare_conditioning(tiny_backbone, "a photo of a teddy", {}, CONFIG)
    plain = denoise(tiny_backbone, conditioning, initial_latents(tiny_backbone, [1], CONFIG), CONFIG)
    assert not torch.allclose(sample(tiny_backbone), plain, atol=1e-3)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_samples(tiny_backbone: Backbone, scheduler: str) -> None:
    config = SamplingConfig(steps=4, scheduler=scheduler)
    first, again = sample(tiny_backbone, config), sample(tiny_backbone, config)
    assert first.isfinite().all() and first.shape == (1, 4, 8, 8)
    assert torch.equal(first, again), "the seed is the only randomness"


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_any_number_of_steps(tiny_backbone: Backbone, steps: int) -> None:
    done: list[int] = []
    config = SamplingConfig(steps=steps)
    conditioning = prepare_conditioning(tiny_backbone, PROMPT, {"<toy>": concept(tiny_backbone)}, config)
    assert len(conditioning.timesteps) == steps
    latents = denoise(tiny_backbone, conditioning, initial_latents(tiny_backbone, [1], config), config, done.append)
    assert done == list(range(steps)) and latents.isfinite().all()


def test_every_step_has_the_conditioning_of_its_timestep(tiny_backbone: Backbone) -> None:
    method = concept(tiny_backbone)
    together = prepare_conditioning(tiny_backbone, PROMPT, {"<toy>": method}, CONFIG, chunk_rows=16)
    fed: list[tuple[float, Tensor]] = []
    tiny_backbone.unet.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append((float(args[1]), kwargs["encoder_hidden_states"])), with_kwargs=True
    )
    denoise(tiny_backbone, together, initial_latents(tiny_backbone, [1], CONFIG), CONFIG)
    assert [t for t, _ in fed] == together.timesteps.tolist()
    for k, (_, context) in enumerate(fed):
        positive, negative = together.at(k)
        assert torch.equal(context, torch.cat([negative.packed(), positive.packed()]))
        assert k == 0 or not torch.allclose(context[1], fed[0][1][1])


def test_a_seed_does_not_depend_on_its_batch(tiny_backbone: Backbone) -> None:
    together = sample(tiny_backbone, seeds=(7, 8, 9))
    for i, seed in enumerate((7, 8, 9)):
        torch.testing.assert_close(sample(tiny_backbone, seeds=(seed,)), together[i : i + 1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_a_seeds_noise_is_that_of_its_own_generator(tiny_backbone: Backbone) -> None:
    noise = initial_latents(tiny_backbone, [5, 6], SamplingConfig(height=128, width=64))
    assert noise.shape == (2, 4, 16, 8) and noise.dtype == torch.float32
    assert torch.equal(noise[1], torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(6)))


@pytest.mark.parametrize(("scale", "rows"), [(7.5, 4), (1.0, 2), (0.0, 2)])
def test_guidance_takes_one_unet_batch(tiny_backbone: Backbone, scale: float, rows: int) -> None:
    seen: list[int] = []
    tiny_backbone.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    sample(tiny_backbone, SamplingConfig(steps=3, guidance_scale=scale), seeds=(1, 2))
    assert seen == [rows] * 3


def test_truncation_and_negative_prompt_reach_the_conditioning(tiny_backbone: Backbone) -> None:
    whole = sample(tiny_backbone)
    assert not torch.allclose(sample(tiny_backbone, truncation=4), whole, atol=1e-4)
    assert not torch.allclose(sample(tiny_backbone, negative_prompt="a painting"), whole, atol=1e-4)
    with pytest.raises(UserError, match="truncation 129"):
        sample(tiny_backbone, truncation=129)


def test_half_precision_unet_keeps_latents_in_float32(tiny_backbone: Backbone) -> None:
    full = sample(tiny_backbone)
    half = sample(tiny_backbone.to("cpu", torch.bfloat16))
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half.flatten(), full.flatten(), dim=0) > 0.98
    assert decode(tiny_backbone, half)[0].size == (64, 64)


def test_the_unet_is_left_as_it_was(tiny_backbone: Backbone) -> None:
    processors = tiny_backbone.unet.attn_processors
    conditioning = prepare_conditioning(tiny_backbone, PROMPT, {"<toy>": concept(tiny_backbone)}, CONFIG)
    latents = initial_latents(tiny_backbone, [1], CONFIG)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(tiny_backbone, conditioning, latents, CONFIG, interrupt)
    assert all(tiny_backbone.unet.attn_processors[path] is before for path, before in processors.items())


def test_a_concept_in_training_is_sampled_without_dropout(tiny_backbone: Backbone) -> None:
    method = concept(tiny_backbone).train()
    state = torch.get_rng_state()
    in_training = packed(prepare_conditioning(tiny_backbone, PROMPT, {"<toy>": method}, CONFIG))
    assert method.training and torch.equal(torch.get_rng_state(), state), "and leaves training as it was"
    in_eval = packed(prepare_conditioning(tiny_backbone, PROMPT, {"<toy>": method.eval()}, CONFIG))
    assert torch.equal(in_training, in_eval)


def test_conditioning_of_other_timesteps_is_refused(tiny_backbone: Backbone) -> None:
    conditioning = prepare_conditioning(tiny_backbone, PROMPT, {"<toy>": concept(tiny_backbone)}, CONFIG)
    other = SamplingConfig(steps=3, scheduler="ddim")
    with pytest.raises(ValueError, match="other timesteps"):
        denoise(tiny_backbone, conditioning, initial_latents(tiny_backbone, [1], other), other)


def test_a_black_image_is_explained(tiny_backbone: Backbone) -> None:
    broken = torch.full((1, 4, 8, 8), torch.nan)
    with pytest.raises(NaNImageError, match="the U-Net of tiny gave NaN"):
        decode(tiny_backbone, broken)
    tiny_backbone.vae.decoder.conv_out.weight.fill_(torch.inf)
    with pytest.raises(NaNImageError, match="the VAE of tiny gave NaN"):
        decode(tiny_backbone, torch.zeros(1, 4, 8, 8))


def test_decoding_undoes_what_training_does_to_latents(tiny_backbone: Backbone) -> None:
    """Scaled by the one factor of the VAE, and shifted by the other where it has one."""
    tiny_backbone.vae.register_to_config(shift_factor=0.5)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scaling_factor = tiny_backbone.vae.config["scaling_factor"]
    pixels = tiny_backbone.vae.decode(latent).sample
    scaled = LatentCache(latent[None], torch.full_like(latent[None], -30), scaling_factor, 0.5)
    trained_on = scaled.sample([0], [False], torch.zeros_like(latent))
    expected = (pixels[0] / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    difference = np.asarray(decode(tiny_backbone, trained_on)[0]).astype(int) - expected
    assert abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scheduler": "ddpm"}, "scheduler 'ddpm': must be one of dpmsolver"),
        ({"steps": 0}, "steps 0: must lie in 1..1000"),
        ({"steps": 1001}, "steps 1001"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingConfig(**wrong)


@pytest.mark.parametrize("size", [{"height": 60}, {"width": -64}])
def test_an_image_size_the_vae_cannot_make_is_refused(tiny_backbone: Backbone, size: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="multiples of 8"):
        initial_latents(tiny_backbone, [1], SamplingConfig(**size))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_prompts_and_truncations_share_a_batch(tiny_backbone: Backbone, guidance_scale: float) -> None:
    config = SamplingConfig(steps=3, guidance_scale=guidance_scale)
    method = concept(tiny_backbone)
    whole, cut = (
        prepare_conditioning(tiny_backbone, PROMPT, {"<toy>": method}, config, truncation=n) for n in (None, 8)
    )
    word = prepare_conditioning(tiny_backbone, "a photo of a teddy", {}, config, negative_prompt="a painting")
    latents = initial_latents(tiny_backbone, [1, 2, 1, 1], config)
    together = denoise(tiny_backbone, [whole, whole, cut, word], latents, config)
    alone = [
        denoise(tiny_backbone, each, latents[i : i + 1], config) for i, each in enumerate((whole, whole, cut, word))
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert (together[0] - together[2]).abs().max() > 1e-3 < (together[0] - together[3]).abs().max()


def test_as_many_conditionings_as_latents(tiny_backbone: Backbone) -> None:
    conditioning = prepare_conditioning(tiny_backbone, "a photo of a teddy", {}, CONFIG)
    with pytest.raises(ValueError, match="2 conditionings for 3 latents"):
        denoise(tiny_backbone, [conditioning] * 2, initial_latents(tiny_backbone, [1, 2, 3], CONFIG), CONFIG)


def test_memory_of_the_conditioning_does_not_grow_with_the_steps(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is forgotten is encoded again, just as it was."""
    config = SamplingConfig(steps=12)

    def largest() -> tuple[int, list[Tensor]]:
        prepared = prepare_conditioning(tiny_backbone, PROMPT, {"<toy>": concept(tiny_backbone)}, config, chunk_rows=32)
        texts, held = [], []
        for step in (*range(12), 0):
            texts.append(prepared.at(step)[0].packed())
            held.append(sum(each.nbytes for block in prepared._encoded.values() for each in block))
        return max(held), texts

    whole, texts = largest()
    monkeypatch.setattr("neti.models.conditioning.prompt_conditioning.KEPT_BYTES", 0)
    block, again = largest()
    assert block * 6 == whole, "two steps of twelve"
    assert all(torch.equal(one, other) for one, other in zip(texts, again, strict=True))


def with_settings(backbone: Backbone, **changes: Any) -> Backbone:
    """The backbone with a scheduler whose JSON has these settings, and no clip_sample, as diffusers saves some."""
    own: Any = backbone.scheduler
    config = {key: value for key, value in own.config.items() if key not in ("clip_sample", "_use_default_values")}
    backbone.scheduler = DDPMScheduler.from_config({**config, **changes})
    return backbone


def test_ddim_never_clips_latents(tiny_backbone: Backbone) -> None:
    config = SamplingConfig(steps=4, scheduler="ddim")
    expected = sample(tiny_backbone, config)
    assert expected.abs().max() > 1
    for changes in ({}, {"clip_sample": True}, {"thresholding": True, "sample_max_value": 1.0}):
        assert torch.equal(sample(with_settings(tiny_backbone, **changes), config), expected)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("offset", [0, 1])
def test_the_offset_of_steps_is_that_of_stock_pipelines(tiny_backbone: Backbone, scheduler: str, offset: int) -> None:
    """They correct a missing or zero steps_offset to 1."""
    backbone = with_settings(tiny_backbone, steps_offset=offset, timestep_spacing="leading")
    stock: Any = stock_pipeline(backbone, deepcopy(backbone.scheduler)).scheduler
    scheduler_class, changes = SCHEDULERS[scheduler]
    ours = make_scheduler(backbone, SamplingConfig(steps=10, scheduler=scheduler))
    theirs = scheduler_class.from_config(stock.config, **changes)
    theirs.set_timesteps(10)
    assert ours.config["steps_offset"] == 1 and torch.equal(ours.timesteps, theirs.timesteps)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_public_codes_sampler_starts_at_the_end_of_the_noise(tiny_backbone: Backbone, spacing: str) -> None:
    backbone = with_settings(tiny_backbone, timestep_spacing=spacing)
    timesteps = make_scheduler(backbone, SamplingConfig(steps=50, scheduler="dpmsolver++sigma_min")).timesteps
    assert timesteps[0] == 999 and timesteps[-1] == 20


@pytest.mark.parametrize("steps", [998, 999, 1000])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_step_lies_beyond_the_noise(tiny_backbone: Backbone, scheduler: str, steps: int) -> None:
    """Schedulers with the offset of 1 count to 1000, or stay at 1."""
    backbone = with_settings(tiny_backbone, timestep_spacing="leading")
    try:
        timesteps = make_scheduler(backbone, SamplingConfig(steps=steps, scheduler=scheduler)).timesteps
    except UserError as error:
        assert (steps > 998 or scheduler == "lcm") and f"steps {steps}: " in str(error)
    else:
        assert 998 <= timesteps.max() <= 999 and timesteps.min() <= 2


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_few_steps_are_enough(tiny_backbone: Backbone, scheduler: str) -> None:
    """Heun's stands at most timesteps twice."""
    backbone = with_settings(tiny_backbone, timestep_spacing="leading")
    for steps in (1, 2, 3):
        assert len(make_scheduler(backbone, SamplingConfig(steps=steps, scheduler=scheduler)).timesteps) >= steps


@pytest.mark.parametrize("scheduler", ["euler_a", "lcm"])
def test_a_sampler_that_draws_noise_is_fixed_by_the_seed_in_any_batch(tiny_backbone: Backbone, scheduler: str) -> None:
    """And as stock pipelines draw it: the seed's generator goes on from the initial noise."""
    config = SamplingConfig(steps=4, scheduler=scheduler)
    conditioning = prepare_conditioning(tiny_backbone, "a photo of a teddy", {}, config)

    def made(seeds: list[int]) -> Tensor:
        latents, generators = (make(tiny_backbone, seeds, config) for make in (initial_latents, step_generators))
        return denoise(tiny_backbone, conditioning, latents, config, generators=generators)

    together = made([7, 8])
    for i, seed in enumerate((7, 8)):
        torch.testing.assert_close(made([seed]), together[i : i + 1], rtol=1e-3, atol=1e-3)
    own: Any = tiny_backbone.scheduler
    pipeline = stock_pipeline(tiny_backbone, SCHEDULERS[scheduler][0].from_config(own.config))
    generator = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    expected = pipeline(
        ["a photo of a teddy"] * 2, num_inference_steps=4, generator=generator, output_type="latent"
    ).images
    torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "meant"), [("Euler A", "euler_a"), ("DPM++ 2M", "dpmsolver++"), ("DDIM", "ddim")])
def test_samplers_answer_to_the_names_of_other_tools(name: str, meant: str) -> None:
    assert SamplingConfig(scheduler=name).scheduler == meant
