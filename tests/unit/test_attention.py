"""Layer discovery, packing and the denoiser, against the stock U-Net watched through hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from neti.models.attention.layers import Layer, cross_attention_layers
from neti.models.attention.packing import pack, packed_rows, unpack
from neti.models.attention.processor import PlacedAttnProcessor
from neti.models.attention.projection import KeyValueProjection
from neti.models.backbone.backbone import Backbone
from neti.models.backbone.denoiser import Denoiser
from neti.models.backbone.frame import Frame
from neti.models.conditioning.conditioning import Conditioning

SD1_NAMES = [
    *("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID"),
    *("OUT03", "OUT04", "OUT05", "OUT06", "OUT07", "OUT08", "OUT09", "OUT10", "OUT11"),
]
SD2 = {"text_width": 64, "attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True}
SHAPES: list[dict[str, Any]] = [{}, SD2]


@pytest.fixture(params=SHAPES, ids=["SD1", "SD2"])
def backbone(request: pytest.FixtureRequest, make_tiny_backbone: Callable[..., Backbone]) -> Backbone:
    return make_tiny_backbone(**request.param)


def inputs(backbone: Backbone, batch: int = 2) -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, 8, 8, generator=generator)
    shape = (backbone.frame.num_places, batch, backbone.frame.tokens, backbone.frame.text_width)
    keys, values = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return latents, torch.tensor([10, 900])[:batch], Conditioning(keys, values)


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
def context_per_layer(unet: UNet2DConditionModel, both: Conditioning) -> Iterator[None]:
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
    assert [layer.index for layer in layers] == [layer.place for layer in layers] == list(range(16))
    widths = [backbone.unet.get_submodule(layer.path).to_v.out_features for layer in layers]
    assert [layer.width for layer in layers] == widths
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
    places = {layer.path.partition(".transformer_blocks")[0]: layer.place for layer in layers}
    assert [layer.place for layer in layers] == [
        places[layer.path.partition(".transformer_blocks")[0]] for layer in layers
    ]
    assert sorted(places.values()) == list(range(len(places)))


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
    torch.testing.assert_close(Denoiser(backbone)(latents, t, both), expected, rtol=1e-5, atol=1e-6)


def test_the_unet_itself_is_never_touched(backbone: Backbone) -> None:
    """Two denoisers of one U-Net, and the stock U-Net before, between and after them."""
    latents, t, both = inputs(backbone)
    plain, processors = both.keys[0], backbone.unet.attn_processors
    before = predict(backbone.unet, latents, t, plain)
    first = Denoiser(backbone)
    alone = first(latents, t, both)
    second = Denoiser(backbone, Doubled())
    assert torch.equal(predict(backbone.unet, latents, t, plain), before)
    assert not torch.allclose(second(latents, t, both), alone, atol=1e-4)
    assert torch.equal(first(latents, t, both), alone)
    assert all(backbone.unet.attn_processors[path] is processor for path, processor in processors.items())


class Doubled(KeyValueProjection):
    """Twice the values."""

    def project(
        self, attn: Attention, layer: Layer, keys: Tensor, values: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        return attn.to_k(keys), 2 * attn.to_v(values)


def test_a_denoiser_follows_its_unet(tiny_backbone: Backbone) -> None:
    latents, t, both = inputs(tiny_backbone)
    denoiser = Denoiser(tiny_backbone)
    full = denoiser(latents, t, both)
    tiny_backbone.to("cpu", torch.bfloat16)
    half = denoiser(latents, t, both)
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)


def test_gradient_checkpointing_changes_no_gradient(backbone: Backbone) -> None:
    latents, t, both = inputs(backbone)
    gradients = []
    for checkpointing in (False, True):
        context = torch.stack([both.keys, both.values]).requires_grad_()
        denoiser = Denoiser(backbone, gradient_checkpointing=checkpointing)
        denoiser(latents, t, Conditioning(*context)).square().sum().backward()
        assert context.grad is not None
        gradients.append(context.grad)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in backbone.unet.modules())
    without, with_checkpointing = gradients
    torch.testing.assert_close(with_checkpointing, without, rtol=1e-5, atol=1e-7)
    per_layer = without.flatten(2).norm(dim=-1)
    assert (per_layer > 0).all(), "every layer's keys and values take part"


def test_an_ordinary_encoding_goes_to_the_processor_that_was_there(tiny_backbone: Backbone) -> None:
    _, _, both = inputs(tiny_backbone)
    layer = tiny_backbone.frame.layers[0]
    attention: Any = tiny_backbone.unet.get_submodule(layer.path)
    pixels = torch.randn(2, 64, attention.query_dim, generator=torch.Generator().manual_seed(0))
    expected = attention(pixels, encoder_hidden_states=both.keys[0])
    stock = attention.processor
    attention.set_processor(PlacedAttnProcessor(layer, tiny_backbone.frame, KeyValueProjection(), stock))
    assert torch.equal(attention(pixels, encoder_hidden_states=both.keys[0]), expected)
    assert not torch.equal(attention(pixels, encoder_hidden_states=both.packed()), expected)
    attention.set_processor(PlacedAttnProcessor(layer, tiny_backbone.frame, KeyValueProjection()))
    with pytest.raises(ValueError, match="packed conditioning"):
        attention(pixels, encoder_hidden_states=both.keys[0])


@pytest.mark.parametrize("width", [4, 7, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_packed_is_unpacked(width: int, dtype: torch.dtype) -> None:
    """Also where the slots take more than one row."""
    frame = Frame.of_sizes(3, [width], tokens=7)
    keys, values = torch.randn(2, 3, 2, 7, width).to(dtype)
    slots, image = torch.randint(0, 200, (2, 7)), torch.randn(2, 5, width).to(dtype)
    packed = pack(keys, values, slots, image)
    assert packed.shape[1] == packed_rows(frame, 5)
    for place in range(3):
        text = unpack(packed, frame, place)
        assert torch.equal(text.keys, keys[place]) and torch.equal(text.values, values[place])
        assert torch.equal(text.slots, slots) and torch.equal(text.image, image)
    assert not unpack(pack(keys, values), frame, 0).slots.any()


def test_two_threads_draw_what_each_draws_alone(tiny_backbone: Backbone) -> None:
    """Bit for bit, while a stock U-Net is at work beside them."""
    latents, t, both = inputs(tiny_backbone)
    plain = both.keys[0]
    calls: list[Callable[[], Tensor]] = [
        lambda: Denoiser(tiny_backbone)(latents, t, both),
        lambda: Denoiser(tiny_backbone, Doubled())(latents, t, both),
        lambda: predict(tiny_backbone.unet, latents, t, plain),
    ]
    with torch.no_grad():
        alone = [call() for call in calls]

    def repeatedly(call: Callable[[], Tensor]) -> list[Tensor]:
        with torch.no_grad():  # of each thread its own
            return [call() for _ in range(5)]

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(repeatedly, calls))
    for expected, results in zip(alone, together, strict=True):
        assert all(torch.equal(result, expected) for result in results)
