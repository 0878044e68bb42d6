"""Noise predictions and the guided sampling loop against the public implementation's recordings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recordings import Recording, read_recording
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.denoiser import Denoiser
from neti.models.conditioning.conditioning import Conditioning, condition, join, plain_condition, tokenize
from neti.models.generation.sampling import SamplingConfig, decode, denoise, prepare_conditioning
from neti.models.methods import NeTI

PROMPTS = {"photo": "A photo of a <toy>", "monet": "A painting of <toy> in the style of Monet"}
CONFIG = SamplingConfig(steps=6, guidance_scale=7.5, scheduler="dpmsolver++sigma_min")


@torch.no_grad()
def predict(recording: Recording, backbone: Backbone, conditioning: Conditioning) -> Tensor:
    t = recording["unet.t"]
    latents = recording["unet.latent"].expand(len(t), -1, -1, -1)
    return Denoiser(backbone)(latents, t, conditioning)


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("truncation", [None, 16])
@torch.no_grad()
def test_prediction(recording: Recording, backbone: Backbone, method: NeTI, name: str, truncation: int | None) -> None:
    tokens = tokenize(backbone.tokenizer, [PROMPTS[name]], ["<toy>"])
    vectors = method.vectors(recording["unet.t"], truncation)
    both = condition(backbone.text, tokens, {"<toy>": vectors}, backbone.frame)
    prediction = predict(recording, backbone, both)
    assert recording.compare(f"unet.cond.{name}.trunc_{str(truncation).lower()}", prediction) < 1e-4


@torch.no_grad()
def test_unconditional_prediction(recording: Recording, backbone: Backbone) -> None:
    plain = plain_condition(backbone.text, [""], backbone.frame)
    prediction = predict(recording, backbone, join([plain] * 3))
    assert recording.compare("unet.uncond", prediction) < 1e-4


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("truncation", [None, 16])
def test_guided_sampling(
    recording: Recording, backbone: Backbone, method: NeTI, name: str, truncation: int | None
) -> None:
    conditioning = prepare_conditioning(backbone, PROMPTS[name], {"<toy>": method}, CONFIG, truncation=truncation)
    assert torch.equal(conditioning.timesteps, recording["pipe.timesteps"])
    latents = denoise(backbone, conditioning, recording["pipe.init_latent"], CONFIG)
    final = f"pipe.{name}.trunc_{str(truncation).lower()}.final"
    assert recording.compare(final, latents) / recording[final].abs().max().item() < 1e-3


def test_decoded_image(backbone: Backbone) -> None:
    recording = read_recording("default")
    [image] = decode(backbone, recording["pipe.photo.trunc_none.final"])
    difference = np.asarray(image).astype(int) - recording["pipe.photo.trunc_none.image"][0].numpy().astype(int)
    assert abs(difference).max() <= 1
