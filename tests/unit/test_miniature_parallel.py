"""Pretraining by several processes: one model, the one of a single process; and how hard negatives are drawn."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from transformers import CLIPModel, CLIPTokenizer

from neti.training.miniature.pretraining import clip, data, loop, unet
from neti.training.miniature.pretraining.config import CLIPSettings, UNetConfig
from neti.training.miniature.world.world import Scene
from neti.utils.errors import UserError

TOKENIZER = Path(__file__).parents[1] / "data" / "tokenizer"
# the first steps of a warm-up of 200, from 0
CONFIG = UNetConfig(steps=4, batch=4, channels=(16, 16, 16, 16), heads=(1, 1, 1, 1), learning_rate=0.2)


def train(folder: Path) -> dict[str, torch.Tensor]:
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    tower: CLIPModel = clip.build(
        CLIPSettings(text_width=32, text_layers=1, image_width=32, image_layers=1), tokenizer, 64
    )
    trained = unet.train(
        CONFIG,
        torch.randn(8, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        1.0,
        unet.build(CONFIG, 8, 32),
        unet.text_tower(tower),
        tokenizer,
        lambda chosen, step: [f"a cat {k}" for k in chosen],
        loop.Slice(folder, "unet", shared=True),
    )
    assert trained is not None
    return trained[0].state_dict()


def gradients() -> list[torch.Tensor]:
    """Of a layer, for this process's share of a batch of four."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    shared = loop.shared(layer)  # to be kept until the backward pass is done
    shared(torch.randn(4, 3)[loop.own_share(4)]).square().mean().backward()
    return [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]


def _process(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    loop.join_processes("cpu")
    said = loop.first_says(loop.rank() == 0)
    with pytest.raises(UserError, match="batch = 3 cannot be shared evenly by 2 processes"):
        loop.own_share(3)
    found = {"rank": loop.rank(), "said": said, "gradients": gradients(), "weights": train(folder)}
    torch.save(found, folder / f"rank_{rank}.pt")


def test_two_processes_train_one_model_with_the_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(_process, args=(29531, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (first["rank"], second["rank"]) == (0, 1) and first["said"] and second["said"]
    for mine, theirs, whole in zip(first["gradients"], second["gradients"], gradients(), strict=True):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, whole)
    start = unet.build(CONFIG, 8, 32).state_dict()
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert any(not torch.equal(value, start[name]) for name, value in first["weights"].items())
    saved = torch.load(tmp_path / "unet.pt", weights_only=True)["step"]
    assert saved == CONFIG.steps
    gone_on = train(tmp_path)  # one process reads what two have finished
    assert all(torch.equal(value, first["weights"][name]) for name, value in gone_on.items())


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_told(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)

    def run(module: torch.nn.Module) -> None:
        optimizer = torch.optim.AdamW(module.parameters())
        loop.run(
            loop.Slice(tmp_path, "part"),
            module,
            optimizer,
            2,
            lambda step: {"loss": next(module.parameters()).square().sum()},
            ema=0.9,
        )

    run(module)
    with pytest.raises(UserError, match="saved with other settings") as caught:
        run(torch.nn.Linear(4, 2))
    assert "\n" not in str(caught.value)
    (tmp_path / "part.pt").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"part\.pt is damaged"):
        run(module)


def test_the_average_forgets_the_start_sooner_than_its_decay_says(tmp_path: Path) -> None:
    """After the first step the average is the weights; then (1 + n) / (10 + n) of it are kept, at most `ema`."""
    weight = torch.nn.Linear(1, 1, bias=False)
    seen: list[float] = []

    def loss(step: int) -> dict[str, torch.Tensor]:
        seen.append(weight.weight.item())
        return {"loss": weight(torch.ones(1)).sum()}

    optimizer = torch.optim.SGD(weight.parameters(), lr=1.0)
    averaged = loop.run(loop.Slice(tmp_path, "part"), weight, optimizer, 3, loss, ema=0.5, warmup=2)
    assert averaged is not None
    first, second, third = (seen[0] - total for total in (0.0, 0.5, 1.5))  # rates 0, 1/2, 1 times a gradient of 1
    assert [*seen[1:], weight.weight.item()] == pytest.approx([first, second, third], abs=1e-5)
    expected = first + (second - first) * (1 - 2 / 11)
    expected += (third - expected) * (1 - 3 / 12)
    assert float(next(averaged.parameters())) == pytest.approx(expected, abs=1e-5)


def test_batches_of_hard_negatives_hold_one_group_and_nothing_else() -> None:
    alike = ([np.array([1, 4]), np.array([9]), np.array([0, 2, 3, 5])], [np.array([1, 4, 9]), np.array([0, 2, 3, 5])])

    def drawn(shares: tuple[float, float]) -> set[frozenset[int]]:
        settings = CLIPSettings(batch=32, alike=shares)
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
    assert CLIPSettings().problems() == [] and "at most 1" in CLIPSettings(alike=(0.8, 0.3)).problems()[0]
