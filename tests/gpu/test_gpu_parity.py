"""The public implementation's recordings, on the GPU: other kernels, the same numbers but for rounding.

Bounds are ten times those on a CPU (tests/parity). `pytest tests/gpu -rA` prints what is found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from recordings import Recording
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.denoiser import Denoiser
from neti.models.conditioning.conditioning import condition, tokenize
from neti.models.generation.sampling import SamplingConfig, denoise, prepare_conditioning
from neti.models.methods import NeTI
from neti.training.coach.objective import Batch, Objective

PROMPT = "A photo of a {}"


@pytest.fixture(scope="module")
def backbone(reference_folder: Path, device: torch.device) -> Backbone:
    return Backbone.from_pretrained(str(reference_folder), device=device)


@pytest.fixture
def concept_there(method: NeTI, device: torch.device) -> NeTI:
    return method.to(device)


@pytest.fixture
def recorded(recording: Recording, device: torch.device) -> Callable[[str], Tensor]:
    return lambda name: recording[name].to(device)


@torch.no_grad()
def test_vectors_keys_and_predictions(
    recording: Recording, recorded: Callable[[str], Tensor], backbone: Backbone, concept_there: NeTI
) -> None:
    vectors = concept_there.vectors(recorded("mapper.t"))
    parts = [vectors.words] if vectors.bypass is None else [vectors.words, vectors.bypass]
    assert recording.compare("mapper.out.trunc_none", torch.cat(parts, dim=-1).transpose(0, 1)) < 1e-4
    tokens = tokenize(backbone.tokenizer, [PROMPT], ["{}"])
    vectors = concept_there.vectors(recorded("ctx.t"))
    keys = condition(backbone.text, tokens, {"{}": vectors}, backbone.frame).keys
    assert recording.compare("ctx.photo.trunc_none.key", keys.transpose(0, 1)[:, :, :13]) < 1e-3
    timesteps = recorded("unet.t")
    both = condition(backbone.text, tokens, {"{}": concept_there.vectors(timesteps)}, backbone.frame)
    latents = recorded("unet.latent").expand(len(timesteps), -1, -1, -1)
    assert recording.compare("unet.cond.photo.trunc_none", Denoiser(backbone)(latents, timesteps, both)) < 1e-3


def test_guided_sampling(
    recording: Recording, recorded: Callable[[str], Tensor], backbone: Backbone, concept_there: NeTI
) -> None:
    config = SamplingConfig(steps=6, guidance_scale=7.5, scheduler="dpmsolver++sigma_min")
    conditioning = prepare_conditioning(backbone, PROMPT, {"{}": concept_there}, config)
    latents = denoise(backbone, conditioning, recorded("pipe.init_latent"), config)
    final = "pipe.photo.trunc_none.final"
    assert recording.compare(final, latents) / recording[final].abs().max().item() < 1e-2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(
    recording: Recording,
    recorded: Callable[[str], Tensor],
    backbone: Backbone,
    concept_there: NeTI,
    checkpointing: bool,
) -> None:
    prompts = [prompt.replace("<toy>", "{}") for prompt in recording.facts["train_prompts"]]
    batch = Batch(
        latents=recorded("train.latents"),
        noise=recorded("train.noise"),
        timesteps=recorded("train.timesteps"),
        tokens=tokenize(backbone.tokenizer, prompts, ["{}"]),
        generators=[torch.Generator() for _ in prompts],
    )
    loss = Objective(concept_there, backbone, gradient_checkpointing=checkpointing)(batch)
    loss.backward()
    assert loss.item() == pytest.approx(recording["train.loss"].item(), rel=1e-4)
    name = "train.grad.output_layer.0.weight"
    gradient = concept_there.mapper.output_layer.weight.grad
    assert gradient is not None
    apart = (gradient.cpu()[recording.entries(name)] - recording[name]).norm() / recording[name].norm()
    print(f"{name}: relative {apart:.1e}")
    assert apart < 1e-2
