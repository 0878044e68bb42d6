"""What a concept of each method takes: numbers trained, and bytes on Stable Diffusion v1.4."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from .....models.backbone.frame import Frame
from .....models.concepts.concept import Concept
from .....models.methods import METHODS, Start
from .....utils.config.parsing import to_plain_dict
from ....coach.plan import method_config
from ....config.options import MethodName
from ....config.run import ConceptDtype, RunConfig

SD14 = Frame.of_sizes(16, [768])


def sd14_bytes(config: RunConfig) -> int | None:
    """Size in bytes of the half-precision file of a concept that this configuration would train on SD v1.4.

    None for Perfusion, which starts from the weights of the model itself; docs/perfusion.md tells its size.
    """
    if config.model.method is MethodName.perfusion:
        return None
    method = METHODS[config.model.method].create(
        method_config(config.model),
        SD14,
        Start(torch.ones(SD14.text_width), torch.Generator().manual_seed(0)),
    )
    half = replace(config, log=replace(config.log, concept_dtype=ConceptDtype.fp16))
    metadata = {"base_model": "CompVis/stable-diffusion-v1-4", "step": config.optim.max_train_steps}
    concept = Concept(
        method,
        config.data.placeholder_token,
        config.data.super_category_token,
        {**metadata, "training_config": to_plain_dict(half)},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "concept.safetensors"
        concept.save(path, torch.float16)
        return path.stat().st_size
