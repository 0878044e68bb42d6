"""What the encoder sees of a picture: the states of a frozen CLIP vision tower at five depths (ELITE, section 3.1).

Shapes: B batch, E patches (16 x 16 = 256 for CLIP ViT-L/14), W the tower's width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn, tensor
from transformers import CLIPVisionModel

from ....utils.errors import UserError

FEATURES = 5  # depths that are read, one word each
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_SIXTHS = (6, 1, 2, 3, 4)  # the depths as sixths of the tower: 24, 4, 8, 12, 16 of CLIP ViT-L/14's 24 layers


def default_layers(num_layers: int) -> tuple[int, ...]:
    """Where a tower of `num_layers` is read: the last layer, then those at 1, 2, 3 and 4 sixths of its depth."""
    return tuple(max(1, round(num_layers * sixths / 6)) for sixths in _SIXTHS)


class VisionFeatures(nn.Module):
    """A frozen CLIPVisionModel, read at `layers` (0: the embedding's output, n: after layer n), the deepest first.

    mean, std: statistics that the tower's pixels, in 0..1, are normalised with.
    """

    def __init__(
        self,
        tower: CLIPVisionModel,
        layers: Sequence[int] | None = None,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        config: Any = tower.config
        self.layers = tuple(layers or default_layers(config.num_hidden_layers))
        if len(self.layers) != FEATURES or not all(0 <= n <= config.num_hidden_layers for n in self.layers):
            raise UserError(
                f"feature layers {list(self.layers)}: {FEATURES} of 0..{config.num_hidden_layers} are needed, the "
                "layers that the vision tower has"
            )
        self.tower = tower.requires_grad_(False).eval()
        self.side: int = config.image_size
        self.grid: int = self.side // config.patch_size
        self.width: int = config.hidden_size
        self.register_buffer("mean", tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", tensor(std)[:, None, None], persistent=False)

    @property
    def patches(self) -> int:
        """E, the patches of a picture."""
        return self.grid**2

    def unfreeze(self) -> list[nn.Parameter]:
        """Let the features learn: the parameters they depend on, which the tower's last LayerNorm is not among."""
        tower: Any = self.tower
        depth = max(self.layers)
        read = [tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:depth]]
        return [parameter.requires_grad_(True) for module in read for parameter in module.parameters()]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """pixels [B,3,H,W] in 0..1, any size -> five states [B,1+E,W], float32: the CLS state, then the patches.

        The last layer's state is taken without the tower's final LayerNorm, as the official code takes it.
        """
        if pixels.shape[-2:] != (self.side, self.side):
            pixels = F.interpolate(pixels, (self.side, self.side), mode="bilinear")
        tower: Any = self.tower
        normalised = (pixels - self.mean) / self.std
        output = tower(pixel_values=normalised.to(tower.dtype), output_hidden_states=True)
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        return [states[layer].float() for layer in self.layers]


def load_vision(name_or_path: str | Path, layers: Sequence[int] | None = None) -> VisionFeatures:
    """A CLIP vision tower by hub name or folder, in float32, with the pixel statistics that lie beside its weights.

    Raises UserError if there is no such tower, or weights are missing.
    """
    try:
        loaded: Any = CLIPVisionModel.from_pretrained(
            name_or_path, dtype="float32", output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"vision tower {str(name_or_path)!r} cannot be loaded ({reason})") from error
    tower, info = loaded
    if info["missing_keys"]:  # transformers fills them with random numbers and only warns
        raise UserError(f"vision tower {str(name_or_path)!r}: weights are missing, such as {min(info['missing_keys'])}")
    statistics = Path(name_or_path) / "preprocessor_config.json"
    if statistics.is_file():
        known = json.loads(statistics.read_text(encoding="utf-8"))
        return VisionFeatures(tower, layers, known["image_mean"], known["image_std"])
    return VisionFeatures(tower, layers)
