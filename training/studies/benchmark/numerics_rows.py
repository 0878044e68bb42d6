"""Rows about precision: half-precision frozen models beside float32 ones, in training and in images."""

from __future__ import annotations

import json
import math

import numpy as np
import torch
from safetensors.torch import load_file

from ....models.backbone.backbone import Backbone
from ....models.concepts.concept import Concept
from ....models.conditioning.prompts import SLOT
from ....models.generation.sampling import SamplingConfig, decode, denoise, initial_latents, prepare_conditioning
from ....utils.devices import pick_device
from .commands import Commands
from .config import DTYPES, BenchmarkConfig, Dtype
from .rows import Row

STEPS, BATCH, LAST = 50, 2, 10
SEEDS, IMAGE_STEPS = range(4), 25
PROMPT = "a photo of a {}"
PRECISIONS = {Dtype.fp32: "no", Dtype.fp16: "fp16", Dtype.bf16: "bf16"}


def numerics_rows(config: BenchmarkConfig, commands: Commands) -> list[Row]:
    """The same 50 steps in each precision; then the float32 concept drawn in each precision, and the reverse."""
    on_cpu = pick_device(config.device).type == "cpu"
    halves = (Dtype.bf16,) if on_cpu else (Dtype.bf16, Dtype.fp16)
    curves = {dtype: _train(commands, dtype) for dtype in (Dtype.fp32, *halves)}
    reference = _draw(config, commands, concept_of=Dtype.fp32, drawn_in=Dtype.fp32)
    rows = []
    for dtype in halves:
        drawn = _draw(config, commands, concept_of=Dtype.fp32, drawn_in=dtype)
        learned = _draw(config, commands, concept_of=dtype, drawn_in=Dtype.fp32)
        exact, rounded = curves[Dtype.fp32], curves[dtype]
        finite = sum(map(math.isfinite, rounded))
        rows += [
            Row(
                f"training in {dtype}: loss of step 1, and mean of steps {STEPS - LAST + 1} to {STEPS}",
                f"{rounded[0]:.4f}, {np.mean(rounded[-LAST:]):.4f}",
                wanted=f"as in fp32: {exact[0]:.4f}, {np.mean(exact[-LAST:]):.4f}",
                note=f"largest difference of a step {np.abs(np.subtract(rounded, exact)).max():.4f}; "
                f"{finite} of {STEPS} losses finite",
            ),
            Row(
                f"tensors of the concept learned in {dtype}",
                ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in _tensors(commands, dtype)})),
                wanted="float32",
            ),
            Row(
                f"images of the fp32 concept drawn in {dtype}, beside fp32",
                f"{_difference(drawn, reference):.2f} of 255 apart per value",
                note="mean over pixels; different seeds: " + f"{_difference(reference, reference[::-1]):.0f}",
            ),
            Row(
                f"images of the concept learned in {dtype}, drawn in fp32, beside the fp32 concept's",
                f"{_difference(learned, reference):.2f} of 255 apart per value",
            ),
        ]
    return rows


def _train(commands: Commands, dtype: Dtype) -> list[float]:
    """The losses."""
    commands.train(
        f"in-{dtype}",
        optim__mixed_precision=PRECISIONS[dtype],
        optim__max_train_steps=STEPS,
        optim__train_batch_size=BATCH,
        log__save_steps=STEPS,
    )
    lines = (commands.folder / f"in-{dtype}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def _tensors(commands: Commands, dtype: Dtype) -> list[torch.Tensor]:
    return list(load_file(commands.concept(f"in-{dtype}", STEPS)).values())


@torch.inference_mode()
def _draw(config: BenchmarkConfig, commands: Commands, concept_of: Dtype, drawn_in: Dtype) -> np.ndarray:
    """Images [S, H, W, 3]; an image of NaN is an error."""
    backbone = Backbone.from_pretrained("miniature", dtype=DTYPES[drawn_in], device=pick_device(config.device))
    concept = Concept.load(commands.concept(f"in-{concept_of}", STEPS), backbone=backbone)
    method, sampling = concept.method.to(backbone.unet.device).eval(), SamplingConfig(steps=IMAGE_STEPS)
    conditioning = prepare_conditioning(backbone, PROMPT, {SLOT: method}, sampling)
    images = decode(backbone, denoise(backbone, conditioning, initial_latents(backbone, SEEDS, sampling), sampling))
    return np.stack([np.asarray(image, dtype=np.float64) for image in images])


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())
