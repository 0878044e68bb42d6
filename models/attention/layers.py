"""The U-Net's cross-attention layers in the order the U-Net executes them, and their space-time processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from diffusers.models import UNet2DConditionModel

from .processor import SpaceTimeAttnProcessor


@dataclass(frozen=True)
class CrossAttentionLayer:
    """One cross-attention layer.

    index: position in execution order, 0..L-1; this is the `l` of the paper's (t, l).
    name: "IN01".."IN08", "MID", "OUT03".."OUT11" on SD 1.x/2.x: the numbering of the original latent-diffusion U-Net,
        which the P+ and NeTI papers use.
    path: the attention module inside the U-Net, for `unet.get_submodule(path)`.
    downsampling: the latent's side divided by this layer's side (1, 2, 4, 8 on SD 1.x).
    """

    index: int
    name: str
    path: str
    downsampling: int


def cross_attention_layers(unet: UNet2DConditionModel) -> list[CrossAttentionLayer]:
    """All L cross-attention layers in EXECUTION order: down blocks, middle, up blocks.

    Derived from the U-Net's own modules. `unet.attn_processors` cannot be used for this: it lists down, up, middle.
    """
    return [CrossAttentionLayer(index, *layer) for index, layer in enumerate(_walk(unet))]


def install_space_time_attention(unet: UNet2DConditionModel) -> Callable[[], None]:
    """Give every cross-attention layer a processor that reads its own slice of a packed conditioning.

    From then on the U-Net takes `SpaceTimeConditioning.packed()` as `encoder_hidden_states`. Self-attention is not
    touched. Returns a function that puts the replaced processors back (the very same objects), so nested use works.
    """
    layers = cross_attention_layers(unet)
    modules: list[Any] = [unet.get_submodule(layer.path) for layer in layers]
    replaced = [module.processor for module in modules]
    for layer, module in zip(layers, modules, strict=True):
        module.set_processor(SpaceTimeAttnProcessor(layer.index, len(layers)))

    def restore() -> None:
        for module, processor in zip(modules, replaced, strict=True):
            module.set_processor(processor)

    return restore


def _walk(unet: Any) -> Iterator[tuple[str, str, int]]:
    """(name, path, downsampling) of each layer, following the U-Net's forward pass block by block."""
    downsampling = 1
    number = 1  # the original numbering counts the first convolution as IN00 and every down-sampler as a block
    for i, block in enumerate(unet.down_blocks):
        yield from _block_layers(block, f"down_blocks.{i}", "IN", number, downsampling)
        number += len(block.resnets)
        if block.downsamplers:
            number += 1
            downsampling *= 2
    if unet.mid_block is not None:
        yield from _block_layers(unet.mid_block, "mid_block", "MID", None, downsampling)
    number = 0
    for i, block in enumerate(unet.up_blocks):
        yield from _block_layers(block, f"up_blocks.{i}", "OUT", number, downsampling)
        number += len(block.resnets)
        if block.upsamplers:
            downsampling //= 2


def _block_layers(
    block: Any, path: str, prefix: str, first: int | None, downsampling: int
) -> Iterator[tuple[str, str, int]]:
    for j, attention in enumerate(getattr(block, "attentions", [])):
        depth = len(attention.transformer_blocks)
        for k in range(depth):
            name = prefix if first is None else f"{prefix}{first + j:02d}"
            name += f".{k}" if depth > 1 else ""  # SDXL-like U-Nets stack several transformer blocks in one place
            yield name, f"{path}.attentions.{j}.transformer_blocks.{k}.attn2", downsampling
