"""Rows about Perfusion: what its edit costs beside the frozen U-Net, in training and when drawing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ....models.backbone.backbone import Backbone
from ....models.backbone.denoiser import Denoiser
from ....models.conditioning.conditioning import condition, plain_condition
from ....models.conditioning.prompts import SLOT
from ....models.conditioning.tokens import tokenize
from ....models.methods import Method, Perfusion, Start
from ....models.methods.perfusion.config import PerfusionOptions
from ....models.methods.perfusion.covariance import Covariance, probe
from ...coach.objective import Batch, Objective
from ..timing import Ratio, Row, Timing, in_turn, seconds
from .config import BenchmarkConfig, Subject
from .training import floor, new_method

WORD, PROMPT = "car", "a photo of a {}"
STEPS = 50  # of an image: the text is encoded once for all of them


def perfusion_rows(config: BenchmarkConfig, subject: Subject, backbone: Backbone, folder: Path) -> list[Row]:
    """A training step of Perfusion and of NeTI beside the U-Net's forward and backward alone; a denoising step with a
    concept of Perfusion, and its text, beside the plain prompt's."""
    batch, device = config.batch, backbone.unet.device
    methods: dict[str, Method] = {"Perfusion": new_perfusion(backbone, folder), "NeTI": new_method(backbone)}
    works = {name: training_step(backbone, method, batch) for name, method in methods.items()}
    trained = in_turn({**works, "floor": floor(backbone, batch, 1)}, config.repeats, device)
    concept = methods["Perfusion"].eval()
    drawn = in_turn(
        {"Perfusion": _drawing(backbone, concept), "plain": _drawing(backbone, None)},
        config.repeats,
        device,
    )
    texts = in_turn({"Perfusion": lambda: _encoded(backbone, concept)}, config.repeats, device)
    at_goal = (subject, batch) == (Subject.sd14, 1)
    return [
        *(
            _row(f"{name}: forward and backward of {batch} / the U-Net's alone", trained[name], trained["floor"], goal)
            for name, goal in {"Perfusion": "at most 1.10" if at_goal else "", "NeTI": ""}.items()
        ),
        _row(
            "Perfusion: denoising step / of a plain prompt",
            drawn["Perfusion"],
            drawn["plain"],
            "at most 1.03" if at_goal else "",
        ),
        Row(
            f"its text, encoded once for {STEPS} steps / these steps",
            f"{texts['Perfusion'].median / STEPS / drawn['plain'].median:.4f}",
            counted=f"{texts['Perfusion'].flops / STEPS / drawn['plain'].flops:.4f}",
        ),
    ]


def new_perfusion(backbone: Backbone, folder: Path) -> Perfusion:
    """Perfusion as a training begins with it, with a covariance of no meaning, which costs what any costs."""
    width, path = backbone.frame.text_width, folder / "covariance.safetensors"
    Covariance(torch.eye(width), probe(backbone.text)).save(path)
    start = Start(backbone.word_embedding(WORD).cpu(), word=WORD, backbone=backbone)
    concept = Perfusion.create(PerfusionOptions(covariance=str(path)), backbone.frame, start)
    return concept.to(backbone.unet.device)


def training_step(backbone: Backbone, method: Method, batch: int) -> Callable[[], None]:
    """The forward and backward of one training step on noise, as a piece of work; the optimizer's step is not in it."""
    objective, device = Objective(method.train(), backbone), backbone.unet.device
    generator = torch.Generator().manual_seed(0)
    shape = (batch, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    latents, noise = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    samples = Batch(
        latents=latents,
        noise=noise,
        timesteps=torch.randint(1000, (batch,), generator=generator).to(device),
        tokens=tokenize(backbone.tokenizer, [PROMPT] * batch, {SLOT: 1}),
        generators=[torch.Generator().manual_seed(number) for number in range(batch)],
    )

    def work() -> None:
        method.zero_grad(set_to_none=True)
        objective(samples).backward()

    return work


def _drawing(backbone: Backbone, concept: Method | None) -> Callable[[], Any]:
    """One denoising step of a prompt, with the concept or the word in its place, its text being encoded already."""
    if concept is None:
        text, projection = plain_condition(backbone.text, [PROMPT.replace(SLOT, WORD)], backbone.frame), None
    else:
        text, projection = _encoded(backbone, concept), concept.projection()
    denoiser = Denoiser(backbone, projection)
    shape = (1, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(backbone.unet.device)

    @torch.inference_mode()
    def work() -> None:
        denoiser(latents, torch.tensor(500), text)

    return work


@torch.no_grad()
def _encoded(backbone: Backbone, concept: Method) -> Any:
    tokens = tokenize(backbone.tokenizer, [PROMPT], {SLOT: 1})
    return condition(backbone.text, tokens, {SLOT: concept.vectors(torch.tensor([500]))}, backbone.frame)


def _row(what: str, one: Timing, other: Timing, wanted: str) -> Row:
    return Row(
        what,
        str(Ratio.of(one, other)),
        counted=f"{one.flops / other.flops:.3f}",
        wanted=wanted,
        note=f"{seconds(one.median)} / {seconds(other.median)}",
    )
