"""Pretraining by several processes: the gradients of one, and one model; and how a batch of hard negatives is drawn."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from neti.training.miniature.pretraining import clip, data, loop, parallel, unet
from neti.training.miniature.world.world import Scene

# the warm-up divides the rate by 200
CONFIG = unet.UNetConfig(
    steps=4, batch=4, channels=(16, 16, 16, 16), heads=(1, 1, 1, 1), learning_rate=0.2
)  # times a warm-up of 1/200


def train(folder: Path, tokenizer_folder: Path, config: unet.UNetConfig) -> dict[str, torch.Tensor]:
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    model: CLIPModel = clip.build(
        clip.CLIPSettings(text_width=32, text_layers=1, image_width=32, image_layers=1), tokenizer, 64
    )
    assert isinstance(model.config, CLIPConfig)
    moments = torch.randn(8, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    trained = unet.train(
        config,
        moments,
        1.0,
        unet.build(config, 8, 32),
        unet.text_tower(model),
        tokenizer,
        lambda chosen, step: [f"a cat {k}" for k in chosen],
        loop.Slice(folder, "unet", save_every=2, shared=True),
    )
    assert trained is not None
    return trained[0].state_dict()


def gradient(own: slice) -> torch.optim.Optimizer:
    """A layer whose gradient is that of its share of a batch of four."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    layer(torch.randn(4, 3)[own]).square().mean().backward()
    return torch.optim.SGD(layer.parameters(), lr=0.1)


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p.grad for p in optimizer.param_groups[0]["params"]]


def _process(rank: int, port: int, folder: Path, tokenizer_folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    assert parallel.start() == rank
    optimizer = gradient(parallel.own_share(4))
    parallel.average_gradients(optimizer)
    said = parallel.first_says(rank == 0)
    weights = train(folder, tokenizer_folder, CONFIG)
    torch.save({"weights": weights, "gradients": gradients_of(optimizer), "said": said}, folder / f"rank_{rank}.pt")


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    tokenizer_folder = Path(__file__).parents[1] / "data" / "tokenizer"
    mp.spawn(_process, args=(29531, tmp_path, tokenizer_folder), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1))
    for mine, theirs, whole in zip(
        first["gradients"], second["gradients"], gradients_of(gradient(slice(None))), strict=True
    ):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, whole)
    assert first["said"] and second["said"]
    start = unet.build(CONFIG, 8, 32).state_dict()
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert any(not torch.equal(value, start[name]) for name, value in first["weights"].items())
    saved = torch.load(tmp_path / "unet.pt", weights_only=True)["step"]
    assert saved == CONFIG.steps
    longer = replace(CONFIG, steps=6)  # one process goes on where two stopped
    gone_on = train(tmp_path, tokenizer_folder, longer)
    assert any(not torch.equal(value, first["weights"][name]) for name, value in gone_on.items())


def test_batches_of_hard_negatives_hold_one_group_and_nothing_else() -> None:
    alike = ([np.array([1, 4]), np.array([9]), np.array([0, 2, 3, 5])], [np.array([1, 4, 9]), np.array([0, 2, 3, 5])])

    def drawn(shares: tuple[float, float]) -> set[frozenset[int]]:
        settings = clip.CLIPSettings(batch=32, alike=shares)
        return {frozenset(clip.draw(alike, 1000, settings, loop.generator(0, step)).tolist()) for step in range(60)}

    assert drawn((1.0, 0.0)) == {frozenset(group.tolist()) for group in alike[0]}
    assert drawn((0.0, 1.0)) == {frozenset(group.tolist()) for group in alike[1]}
    assert all(max(batch) > 9 for batch in drawn((0.0, 0.0)))
    assert drawn((0.5, 0.25)) > {frozenset(group.tolist()) for groups in alike for group in groups}


def test_hard_negatives_share_place_and_style_or_style_alone() -> None:
    def scene(place: str, style: str) -> Scene:
        return cast(Scene, SimpleNamespace(place=place, style=style))

    scenes = [scene("sea", "oil"), scene("moon", "oil"), scene("sea", "oil"), scene("sea", "manga")]
    of_ground, of_style = data.alike(scenes)
    assert {tuple(group) for group in of_ground} == {(0, 2), (1,), (3,)}
    assert {tuple(group) for group in of_style} == {(0, 1, 2), (3,)}
    assert clip.CLIPSettings().problems() == [] and "at most 1" in clip.CLIPSettings(alike=(0.8, 0.3)).problems()[0]


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="batch = 64"):
        parallel.own_share(64)
