"""Loss, gradients and optimiser steps against the public implementation's recordings."""

from __future__ import annotations

import pytest
import torch
from recordings import Recording
from torch import Tensor
from torch.nn import functional as F

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.denoiser import Denoiser
from neti.models.concepts.public_code import PARAMETER_NAMES
from neti.models.conditioning.conditioning import ConceptVectors, condition, tokenize
from neti.models.methods import NeTI
from neti.training.coach.objective import Batch, Objective

ADAMW = {"lr": 8e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


def parameters(method: NeTI) -> dict[str, torch.nn.Parameter]:
    """The mapper's parameters under the names the public code gives them."""
    ours = dict(method.mapper.named_parameters())
    return {
        f"{theirs}.{kind}": ours[f"{own}.{kind}"]
        for theirs, own in PARAMETER_NAMES.items()
        for kind in ("weight", "bias")
        if f"{own}.{kind}" in ours
    }


def recorded_batch(recording: Recording, backbone: Backbone, prefix: str, prompts: list[str], index: object) -> Batch:
    return Batch(
        latents=recording[f"{prefix}.latents"][index],
        noise=recording[f"{prefix}.noise"][index],
        timesteps=recording[f"{prefix}.timesteps"][index],
        tokens=tokenize(backbone.tokenizer, [prompt.replace("<toy>", "{}") for prompt in prompts], ["{}"]),
        generators=[torch.Generator() for _ in prompts],
    )


@pytest.fixture
def objective(backbone: Backbone, method: NeTI) -> Objective:
    return Objective(method, backbone)  # the method is in eval mode: nested dropout off, as recorded


@pytest.fixture
def batch(recording: Recording, backbone: Backbone) -> Batch:
    return recorded_batch(recording, backbone, "train", recording.facts["train_prompts"], slice(None))


def check_gradients(recording: Recording, method: NeTI, prefix: str) -> None:
    compared = 0
    for name, parameter in parameters(method).items():
        if f"{prefix}.{name}" not in recording.tensors:
            continue
        assert parameter.grad is not None
        expected = recording[f"{prefix}.{name}"].flatten()
        actual = parameter.grad[recording.entries(f"{prefix}.{name}")].flatten()
        relative = torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)
        print(f"{prefix}.{name}: relative {relative.item():.1e}")
        assert relative < 1e-3, name
        assert F.cosine_similarity(actual.double(), expected.double(), dim=0) > 0.99999, name
        compared += 1
    assert compared >= 8


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(
    recording: Recording, objective: Objective, method: NeTI, batch: Batch, checkpointing: bool
) -> None:
    """The same under gradient checkpointing, where the public code's are silently wrong."""
    if checkpointing:
        objective = Objective(method, objective.backbone, gradient_checkpointing=True)
    loss = objective(batch)
    print(f"train.loss: relative {abs(loss.item() / recording['train.loss'].item() - 1):.1e}")
    assert loss.item() == pytest.approx(recording["train.loss"].item(), rel=1e-5)
    loss.backward()
    check_gradients(recording, method, "train.grad")


def test_checkpointing_leaves_the_gradients_as_they_are(objective: Objective, method: NeTI, batch: Batch) -> None:
    gradients = []
    for _ in range(2):
        method.zero_grad()
        objective(batch).backward()
        gradients.append([parameter.grad.clone() for parameter in method.parameters() if parameter.grad is not None])
        objective = Objective(method, objective.backbone, gradient_checkpointing=True)
    for without, with_checkpointing in zip(*gradients, strict=True):
        torch.testing.assert_close(with_checkpointing, without, rtol=1e-5, atol=1e-7)


def test_only_the_mapper_collects_gradients(objective: Objective, method: NeTI, batch: Batch) -> None:
    objective(batch).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    backbone = objective.backbone
    for frozen in (backbone.text_encoder, backbone.vae, backbone.unet):
        assert all(parameter.grad is None for parameter in frozen.parameters())


def test_adamw_step_from_the_recorded_gradient(recording: Recording, method: NeTI) -> None:
    """Adam's first step is lr * g / (|g| + eps): only from the very same gradient can it be compared exactly."""
    for name, parameter in parameters(method).items():
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad[recording.entries(f"train.grad.{name}")] = recording[f"train.grad.{name}"]
    torch.optim.AdamW([{"params": group["params"]} for group in method.parameter_groups()], **ADAMW).step()
    for name, parameter in parameters(method).items():
        assert recording.compare(f"train.after.{name}", parameter) < 3e-7, name  # an ulp or two


def test_gradient_accumulation(recording: Recording, objective: Objective, method: NeTI, backbone: Backbone) -> None:
    """One optimiser step over four micro-batches."""
    for i, prompts in enumerate(recording.facts["accum_prompts"]):
        loss = objective(recorded_batch(recording, backbone, "accum", prompts, i))
        assert loss.item() == pytest.approx(recording["accum.losses"][i].item(), rel=1e-5)
        (loss / 4).backward()
    for name, expected in recording.facts["accum_grad_norms"].items():
        gradient = parameters(method)[name].grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(expected, rel=1e-4), name
    torch.optim.AdamW(method.parameters(), **ADAMW).step()
    for name, parameter in parameters(method).items():
        assert recording.compare(f"accum.after.{name}", parameter) < 2e-3, name  # see the AdamW test above


def test_nested_dropout_step(recording: Recording, backbone: Backbone, method: NeTI, batch: Batch) -> None:
    """Loss and gradients with sample 0 cut to its first 40 units and sample 1 to 7, in every layer."""
    layers = torch.arange(16)[:, None]
    words, bypass = method.mapper(batch.timesteps[None], layers, recording["nested.cut"])
    vectors = {"{}": ConceptVectors(words, bypass)}
    conditioning = condition(backbone.text, batch.tokens, vectors, backbone.frame)
    noisy: Tensor = backbone.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    loss = F.mse_loss(Denoiser(backbone)(noisy, batch.timesteps, conditioning), batch.noise)
    assert loss.item() == pytest.approx(recording["nested.train_loss"].item(), rel=1e-5)
    loss.backward()
    check_gradients(recording, method, "nested.train_grad")
