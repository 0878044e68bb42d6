"""The U-Net's cross-attention layers, in the order the U-Net executes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diffusers.models import UNet2DConditionModel


@dataclass(frozen=True)
class Layer:
    """One cross-attention layer.

    index: position in execution order, 0..L-1.
    name: "IN01".."IN08", "MID", "OUT03".."OUT11" on SD 1.x/2.x: the numbering of the original latent-diffusion U-Net,
        which the P+ and NeTI papers use. Blocks that share a place are "IN04.0", "IN04.1", ...
    path: the attention module inside the U-Net, for `unet.get_submodule(path)`.
    downsampling: the latent's side divided by this layer's side (1, 2, 4, 8 on SD 1.x).
    width: outputs of its key and value projections (320, 640, 1280 on SD 1.x).
    place: 0..P-1, the spot of the U-Net where its text enters: the `l` of the paper's (t, l). On SD 1.x/2.x every layer
        is a place of its own; on SDXL the transformer blocks of one attention module share one.
    """

    index: int
    name: str
    path: str
    downsampling: int
    width: int
    place: int

    @property
    def place_name(self) -> str:
        """The name without the number of the block."""
        return self.name.partition(".")[0]


def cross_attention_layers(unet: UNet2DConditionModel) -> tuple[Layer, ...]:
    """All L cross-attention layers in EXECUTION order: down blocks, middle, up blocks.

    Derived from the U-Net's own modules. `unet.attn_processors` cannot be used for this: it lists down, up, middle.
    """
    layers: list[Layer] = []
    places: dict[str, int] = {}
    for name, path, downsampling in _walk(unet):
        attention: Any = unet.get_submodule(path)
        place = places.setdefault(path.partition(".transformer_blocks")[0], len(places))
        layers.append(Layer(len(layers), name, path, downsampling, attention.to_k.out_features, place))
    return tuple(layers)


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
            name += f".{k}" if depth > 1 else ""
            yield name, f"{path}.attentions.{j}.transformer_blocks.{k}.attn2", downsampling
