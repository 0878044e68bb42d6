"""The objective on a tiny backbone; its numbers are held to the public code's in tests/parity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from diffusers.models import UNet2DConditionModel
from frames import created
from torch._dynamo.testing import CompileCounter

from neti.models.backbone.backbone import Backbone
from neti.models.conditioning.tokens import tokenize
from neti.models.methods import NeTI, NeTIConfig
from neti.training.coach.objective import Batch, Objective
from neti.utils.errors import UserError

MakeBackbone = Callable[..., Backbone]
PROMPTS = ["a photo of a {}", "a {} and a {}", "a rendering of a {}"]


def make_objective(
    backbone: Backbone, compile_backend: Callable[..., object] | None = None, allow_tf32: bool = False
) -> Objective:
    method = created(
        NeTI,
        NeTIConfig(nested_dropout_prob=1.0),
        backbone.frame.num_places,
        backbone.word_embedding("teddy"),
        torch.Generator().manual_seed(0),
    )
    return Objective(method, backbone, compile_backend=compile_backend, allow_tf32=allow_tf32).train()


def make_batch(backbone: Backbone, first: int = 0, count: int = 3) -> Batch:
    """Samples `first` .. `first + count - 1` of three fixed ones."""
    chosen = slice(first, first + count)
    draw = torch.Generator().manual_seed(1)
    return Batch(
        latents=torch.randn(3, 4, 8, 8, generator=draw)[chosen],
        noise=torch.randn(3, 4, 8, 8, generator=draw)[chosen],
        timesteps=torch.tensor([10, 500, 990])[chosen],
        tokens=tokenize(backbone.tokenizer, PROMPTS[chosen], ["{}"]),
        generators=[torch.Generator().manual_seed(i) for i in range(3)][chosen],
    )


def test_only_the_method_is_registered(tiny_backbone: Backbone) -> None:
    objective = make_objective(tiny_backbone)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in objective.method.parameters()}
    before = {
        name: tensor.clone()
        for part in (tiny_backbone.unet, tiny_backbone.text_encoder, tiny_backbone.vae)
        for name, tensor in part.state_dict().items()
    }
    objective(make_batch(tiny_backbone)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    for part in (tiny_backbone.unet, tiny_backbone.text_encoder, tiny_backbone.vae):
        assert all(p.grad is None for p in part.parameters())
        assert all(torch.equal(tensor, before[name]) for name, tensor in part.state_dict().items())


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_for_the_frozen_parts_and_not_for_the_mapper(tiny_backbone: Backbone, allowed: bool) -> None:
    """By the switches that both kinds of products look up, cuBLAS's and cuDNN's, forward and backward."""
    objective = make_objective(tiny_backbone, allow_tf32=allowed)
    seen: dict[str, set[tuple[bool, bool]]] = {"mapper": set(), "frozen": set()}

    def look(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            seen[name].add((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))

        return hook

    assert isinstance(objective.method, NeTI)
    layer = tiny_backbone.text_encoder.encoder.layers[0].mlp.fc1
    modules = {"mapper": objective.method.mapper.modules(), "frozen": [tiny_backbone.unet.conv_out, layer]}
    hooks = [
        hook
        for name, parts in modules.items()
        for part in parts
        for hook in (part.register_forward_hook(look(name)), part.register_full_backward_pre_hook(look(name)))
    ]
    for _ in range(2):
        objective(make_batch(tiny_backbone)).backward()
    assert seen == {"mapper": {(False, False)}, "frozen": {(allowed, allowed)}}
    for hook in hooks:
        hook.remove()


def test_a_batch_is_the_mean_of_its_samples_nested_dropout_included(tiny_backbone: Backbone) -> None:
    objective = make_objective(tiny_backbone)
    objective(make_batch(tiny_backbone)).backward()
    together = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    for i in range(3):
        (objective(make_batch(tiny_backbone, i, 1)) / 3).backward()
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], rtol=1e-4, atol=1e-8)


def test_nested_dropout_comes_from_the_samples_own_generators(tiny_backbone: Backbone) -> None:
    objective = make_objective(tiny_backbone)
    torch.manual_seed(0)
    first = objective(make_batch(tiny_backbone)).item()
    assert objective(make_batch(tiny_backbone)).item() == first
    objective.eval()
    assert objective(make_batch(tiny_backbone)).item() != first


def test_one_call_of_mapper_and_text_encoder_serves_a_batch(tiny_backbone: Backbone) -> None:
    objective = make_objective(tiny_backbone)
    calls: list[tuple[str, int]] = []
    mapper, encoder = objective.method.mapper, tiny_backbone.text_encoder
    mapper.register_forward_pre_hook(lambda *_: calls.append(("mapper", 1)))
    encoder.encoder.register_forward_pre_hook(
        lambda _, __, inputs: calls.append(("text encoder", len(inputs["inputs_embeds"]))), with_kwargs=True
    )
    objective(make_batch(tiny_backbone))
    assert calls == [("mapper", 1), ("text encoder", 16 * 3)]


def test_a_compiled_unet_is_one_graph_with_the_same_gradients(make_tiny_backbone: MakeBackbone) -> None:
    torch._dynamo.reset()
    graphs = CompileCounter()  # runs the captured graph as it is
    gradients = []
    for backend in (None, graphs):
        backbone = make_tiny_backbone()
        torch.manual_seed(0)
        backbone.unet = UNet2DConditionModel(  # three layers: tracing takes a second or two for each
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=32,
            sample_size=8,
        ).requires_grad_(False)
        objective = make_objective(backbone, backend)
        losses = [objective(make_batch(objective.backbone)) for _ in range(2)]
        losses[0].backward()
        assert losses[0].item() == losses[1].item()
        gradients.append({name: p.grad for name, p in objective.named_parameters()})
    assert graphs.frame_count == 1, "a second step compiles nothing"
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_velocity_is_the_target_of_a_velocity_model(make_tiny_backbone: MakeBackbone) -> None:
    backbone = make_tiny_backbone(prediction_type="v_prediction")
    objective = make_objective(backbone).eval()
    batch = make_batch(backbone)
    predicted: list[torch.Tensor] = []
    backbone.unet.register_forward_hook(lambda module, inputs, output: predicted.append(output.sample))
    loss = objective(batch)
    # v = sqrt(abar) * noise - sqrt(1 - abar) * latents  (Salimans and Ho 2022, Eq. 10 ff.)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - betas).cumprod(0)[batch.timesteps].float()[:, None, None, None]
    velocity = abar.sqrt() * batch.noise - (1 - abar).sqrt() * batch.latents
    assert loss.item() == pytest.approx((predicted[0] - velocity).square().mean().item(), rel=1e-5)


def masked(batch: Batch, masks: torch.Tensor, plain: Sequence[str] | None = None) -> Batch:
    return replace(batch, weights=masks, plain=plain)


def left_and_top() -> torch.Tensor:
    """Three masks [3,1,8,8]: the left half, the upper quarter, and all of it, softly."""
    masks = torch.zeros(3, 1, 8, 8)
    masks[0, :, :, :4] = 1
    masks[1, :, :2] = 0.5
    masks[2] = 0.25
    return masks


def predictions(backbone: Backbone) -> list[torch.Tensor]:
    """What the U-Net predicts from now on."""
    seen: list[torch.Tensor] = []
    backbone.unet.register_forward_hook(lambda module, inputs, output: seen.append(output.sample.detach()))
    return seen


def test_masks_weigh_the_error_and_every_image_counts_alike(tiny_backbone: Backbone) -> None:
    objective = make_objective(tiny_backbone).eval()
    batch = make_batch(tiny_backbone)
    seen = predictions(tiny_backbone)
    loss = objective(masked(batch, left_and_top()))
    error = (seen[0] - batch.noise).square()
    regions = [error[0, :, :, :4], error[1, :, :2], error[2]]
    assert loss.item() == pytest.approx(torch.stack([region.mean() for region in regions]).mean().item(), rel=1e-5)
    assert objective(masked(batch, torch.ones(3, 1, 8, 8))).item() == pytest.approx(objective(batch).item(), rel=1e-6)

    objective.outside_weight = 0.5
    inside, outside = error[0, :, :, :4].mean(), error[0, :, :, 4:].mean()
    first = masked(make_batch(tiny_backbone, 0, 1), left_and_top()[:1])
    assert objective(first).item() == pytest.approx(((inside + 0.5 * outside) / 1.5).item(), rel=1e-5)


def test_a_masked_batch_is_the_mean_of_its_samples(tiny_backbone: Backbone) -> None:
    objective = make_objective(tiny_backbone).eval()
    masks, plain = left_and_top(), ["a photo of a toy", "a toy and a toy", "a rendering of a toy"]
    whole = objective(masked(make_batch(tiny_backbone), masks, plain)).item()
    cut = [objective(masked(make_batch(tiny_backbone, i, 1), masks[i : i + 1], plain[i : i + 1])) for i in range(3)]
    assert torch.stack(cut).mean().item() == pytest.approx(whole, rel=1e-5)


def test_outside_the_mask_the_frozen_model_may_be_the_target(tiny_backbone: Backbone) -> None:
    objective = make_objective(tiny_backbone).eval()
    objective.outside_weight = 1.0
    batch, masks = make_batch(tiny_backbone), left_and_top()
    plain = ["a photo of a teddy", "a teddy and a teddy", "a rendering of a teddy"]
    seen = predictions(tiny_backbone)
    loss = objective(masked(batch, masks, plain))
    learned, frozen = seen
    noisy = objective.diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
    states = tiny_backbone.text_encoder(tokenize(tiny_backbone.tokenizer, plain, []).ids).last_hidden_state
    torch.testing.assert_close(frozen, tiny_backbone.unet(noisy, batch.timesteps, states).sample)
    target = masks * batch.noise + (1 - masks) * frozen
    assert loss.item() == pytest.approx((learned - target).square().mean().item(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_a_model_that_predicts_images_is_refused(make_tiny_backbone: MakeBackbone) -> None:
    with pytest.raises(UserError, match="epsilon and v_prediction"):
        make_objective(make_tiny_backbone(prediction_type="sample"))


def test_half_precision_models_give_a_float32_loss_and_gradients(make_tiny_backbone: MakeBackbone) -> None:
    exact = make_objective(make_tiny_backbone())
    rounded = make_objective(make_tiny_backbone().to("cpu", torch.bfloat16))
    expected, loss = (objective(make_batch(objective.backbone)) for objective in (exact, rounded))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    loss.backward()
    assert {p.grad.dtype for p in rounded.parameters() if p.grad is not None} == {torch.float32}


def test_autocast_around_the_objective_changes_nothing(tiny_backbone: Backbone) -> None:
    objective = make_objective(tiny_backbone)
    plain = objective(make_batch(tiny_backbone)).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective(make_batch(tiny_backbone)).item() == plain
