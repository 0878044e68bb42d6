"""Layer discovery and space-time attention, against the stock U-Net watched through hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor

from neti.models.attention.layers import cross_attention_layers, install_space_time_attention
from neti.models.attention.processor import SpaceTimeAttnProcessor
from neti.models.backbone.backbone import Backbone
from neti.models.conditioning.conditioning import SpaceTimeConditioning

SD1_NAMES = [
    *("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID"),
    *("OUT03", "OUT04", "OUT05", "OUT06", "OUT07", "OUT08", "OUT09", "OUT10", "OUT11"),
]
SD2 = {"text_width": 64, "attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True}
SHAPES: list[dict[str, Any]] = [{}, SD2]


@pytest.fixture(params=SHAPES, ids=["SD1", "SD2"])
def backbone(request: pytest.FixtureRequest, make_tiny_backbone: Callable[..., Backbone]) -> Backbone:
    return make_tiny_backbone(**request.param)


def inputs(backbone: Backbone, batch: int = 2, tokens: int = 7) -> tuple[Tensor, Tensor, SpaceTimeConditioning]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, 8, 8, generator=generator)
    shape = (backbone.num_layers, batch, tokens, backbone.text_width)
    keys, values = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return latents, torch.tensor([10, 900])[:batch], SpaceTimeConditioning(keys, values)


def predict(unet: UNet2DConditionModel, latents: Tensor, t: Tensor, context: Tensor) -> Tensor:
    return unet(latents, t, encoder_hidden_states=context).sample


def executed_cross_attentions(unet: UNet2DConditionModel) -> list[str]:
    """Paths of all modules called `attn2`, in the order a forward pass runs them."""
    executed: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: executed.append(path))
        for path, module in unet.named_modules()
        if path.endswith(".attn2")
    ]
    context = torch.zeros(1, 3, unet.config.cross_attention_dim)
    with torch.no_grad():
        predict(unet, torch.zeros(1, 4, 8, 8), torch.tensor([1]), context)
    for handle in handles:
        handle.remove()
    return executed


@contextmanager
def context_per_layer(unet: UNet2DConditionModel, both: SpaceTimeConditioning) -> Iterator[None]:
    """The stock U-Net with every layer's key and value projections fed by hooks: what ours must equal."""
    handles = []
    for layer in cross_attention_layers(unet):
        attn: Any = unet.get_submodule(layer.path)
        for projection, context in ((attn.to_k, both.keys[layer.index]), (attn.to_v, both.values[layer.index])):
            handles.append(projection.register_forward_pre_hook(lambda *_, context=context: (context,)))
    yield
    for handle in handles:
        handle.remove()


def test_layers_are_in_execution_order(backbone: Backbone) -> None:
    layers = cross_attention_layers(backbone.unet)
    assert [layer.path for layer in layers] == executed_cross_attentions(backbone.unet)
    assert [layer.index for layer in layers] == list(range(16))
    assert [layer.name for layer in layers] == SD1_NAMES
    assert [layer.downsampling for layer in layers] == [1, 1, 2, 2, 4, 4, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    "topology",
    [
        {"layers_per_block": 1},
        {"layers_per_block": (1, 2, 1), "transformer_layers_per_block": (1, 2, 1)},
    ],
)
def test_other_topologies(topology: dict[str, Any]) -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
        sample_size=8,
        **topology,
    )
    layers = cross_attention_layers(unet)
    assert [layer.path for layer in layers] == executed_cross_attentions(unet)
    assert len({layer.name for layer in layers}) == len(layers)


def test_side_of_each_layer_is_the_latents_over_its_downsampling(tiny_backbone: Backbone) -> None:
    sides: dict[str, int] = {}
    for layer in cross_attention_layers(tiny_backbone.unet):
        module = tiny_backbone.unet.get_submodule(layer.path)
        module.register_forward_pre_hook(
            lambda _, args, name=layer.name: sides.__setitem__(name, int(args[0].shape[1] ** 0.5))
        )
    predict(tiny_backbone.unet, torch.zeros(1, 4, 16, 16), torch.tensor([1]), torch.zeros(1, 3, 32))
    assert sides == {layer.name: 16 // layer.downsampling for layer in cross_attention_layers(tiny_backbone.unet)}


def test_every_layer_reads_its_own_keys_and_values(backbone: Backbone) -> None:
    latents, t, both = inputs(backbone)
    with context_per_layer(backbone.unet, both):
        expected = predict(backbone.unet, latents, t, both.keys[0])
    install_space_time_attention(backbone.unet)
    torch.testing.assert_close(predict(backbone.unet, latents, t, both.packed()), expected, rtol=1e-5, atol=1e-6)


def test_self_attention_is_not_touched(tiny_backbone: Backbone) -> None:
    install_space_time_attention(tiny_backbone.unet)
    for path, processor in tiny_backbone.unet.attn_processors.items():
        assert isinstance(processor, SpaceTimeAttnProcessor) == (".attn2." in path)


def test_restore_is_bit_exact_and_nests(backbone: Backbone) -> None:
    latents, t, both = inputs(backbone)
    plain = both.keys[0]
    processors = backbone.unet.attn_processors
    before = predict(backbone.unet, latents, t, plain)
    restore = install_space_time_attention(backbone.unet)
    inner = predict(backbone.unet, latents, t, both.packed())
    install_space_time_attention(backbone.unet)()
    assert torch.equal(predict(backbone.unet, latents, t, both.packed()), inner)
    restore()
    assert all(backbone.unet.attn_processors[path] is processor for path, processor in processors.items())
    assert torch.equal(predict(backbone.unet, latents, t, plain), before)


def test_gradient_checkpointing_changes_no_gradient(backbone: Backbone) -> None:
    latents, t, both = inputs(backbone)
    install_space_time_attention(backbone.unet)
    gradients = []
    for _ in range(2):
        packed = both.packed().requires_grad_()
        predict(backbone.unet, latents, t, packed).square().sum().backward()
        assert packed.grad is not None
        gradients.append(packed.grad)
        backbone.unet.enable_gradient_checkpointing()
    without, with_checkpointing = gradients
    torch.testing.assert_close(with_checkpointing, without, rtol=1e-5, atol=1e-7)
    per_layer = without.unflatten(1, (16, 2, 7)).flatten(3).norm(dim=-1)
    assert (per_layer > 0).all(), "every layer's keys and values take part"


@pytest.mark.parametrize("tokens", [77, 32])  # 32 = 2*L: divisible, and still an ordinary encoding
def test_an_ordinary_encoding_is_refused(tiny_backbone: Backbone, tokens: int) -> None:
    install_space_time_attention(tiny_backbone.unet)
    with pytest.raises(ValueError, match="packed conditioning"):
        predict(tiny_backbone.unet, torch.zeros(1, 4, 8, 8), torch.tensor([1]), torch.zeros(1, tokens, 32))
