"""New concepts for frames of which only the sizes matter."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from neti.models.backbone.frame import Frame
from neti.models.conditioning.prompt_conditioning import PromptConditioning
from neti.models.methods import Method, Start

M = TypeVar("M", bound=Method)


def created(
    method: type[M], config: Any, places: int, embedding: Tensor, generator: torch.Generator | None = None
) -> M:
    """A new concept for so many places, which starts at the token embedding [D]."""
    return method.create(config, Frame.of_sizes(places, [len(embedding)]), Start(embedding, generator))


def packed(conditioning: PromptConditioning) -> Tensor:
    """What the U-Net reads at every step [K,R,D], of the prompt itself."""
    return torch.cat([conditioning.at(step)[0].packed() for step in range(len(conditioning.timesteps))])
