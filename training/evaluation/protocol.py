"""The protocol of a measurement: what its outputs say about how their numbers came about."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from ...models.judging.judge import CLIPJudge, ImageJudge
from .config import MetricsConfig
from .scores import CONFIDENCE

LIBRARIES = ("neti", "torch", "transformers", "pillow", "numpy")


def protocol(config: MetricsConfig, judge: CLIPJudge, dino: ImageJudge | None, device: str) -> dict[str, Any]:
    """Every choice that decides the numbers, by name, ready for JSON."""
    return {
        "judge": config.judge,
        "judge_revision": config.judge_revision,
        "judge_digest": judge.digest,
        "pooling": judge.pooling,
        "judge_input": judge.input.record,
        "resizing": config.resizing.value,
        "placeholder": config.placeholder.value,
        "dino": config.dino,
        "dino_digest": dino.digest if dino else None,
        "dino_pooling": dino.pooling if dino else None,
        "dino_input": dino.input.record if dino else None,
        "image_similarity": "mean cosine over all training x generated pairs",
        "text_similarity": "mean over generated images of the cosine with the prompt's text",
        "diversity": "1 - mean cosine over pairs of different images of one prompt, mean over prompts",
        "interval": {
            "confidence": CONFIDENCE,
            "method": "percentile bootstrap over images (diversity: prompts), over several concepts on two levels",
            "samples": config.bootstrap_samples,
            "seed": config.bootstrap_seed,
        },
        "device": device,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
