"""Every random number of training is a function of the seed and the sample's number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frames import created
from PIL import Image

from neti.models.backbone.backbone import Backbone
from neti.models.methods import NeTI, NeTIConfig
from neti.training.coach.objective import Batch, Objective
from neti.training.config.options import MaskSource, OutsideMask
from neti.training.config.run import DataConfig
from neti.training.data.batches import Batches, sample_generator
from neti.training.data.dataset import ConceptDataset
from neti.training.data.latents import LatentCache
from neti.utils.images import SquareMode

MakeBatches = Callable[..., Batches]


@pytest.fixture
def make_batches(tmp_path: Path, tiny_backbone: Backbone) -> MakeBatches:
    random = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        mask = np.zeros((64, 64), np.uint8)
        mask[:, : 8 * (i + 1)] = 255  # one column of latents in the first image, two in the second, ...
        Image.fromarray(mask).save(tmp_path / f"{i}_bg.png")

    def make(batch_size: int, accumulation: int, process: int = 0, processes: int = 1, **settings: Any) -> Batches:
        cpu = torch.device("cpu")
        dataset = ConceptDataset(DataConfig(tmp_path, "<toy>", resolution=64, **settings), seed=5)
        latents = LatentCache.build(tiny_backbone.vae, dataset)
        return Batches(
            dataset, latents, tiny_backbone.tokenizer, 1, 1000, batch_size, accumulation, process, processes, cpu
        )

    return make


def contents(batches: list[Batch]) -> dict[str, torch.Tensor]:
    """The tensors of several micro-batches in a row; the generators by the next number each would draw."""
    return {
        "latents": torch.cat([batch.latents for batch in batches]),
        "noise": torch.cat([batch.noise for batch in batches]),
        "timesteps": torch.cat([batch.timesteps for batch in batches]),
        "ids": torch.cat([batch.tokens.ids for batch in batches]),
        "slots": torch.cat([batch.tokens.slots["{}"] for batch in batches]),
        "next": torch.cat([torch.rand(1, generator=g) for batch in batches for g in batch.generators]),
    }


def test_a_step_is_the_same_however_it_is_cut(make_batches: MakeBatches) -> None:
    """Four samples as one batch, as four micro-batches, and shared by two processes."""
    whole = contents([make_batches(4, 1).get(step=3, micro_step=0)])
    cuts = {
        "micro-batches": [make_batches(1, 4).get(3, micro_step) for micro_step in range(4)],
        "processes": [make_batches(2, 1, process, 2).get(3, 0) for process in range(2)],
        "both": [make_batches(1, 2, process, 2).get(3, micro) for micro in range(2) for process in range(2)],
    }
    for name, batches in cuts.items():
        for key, tensor in contents(batches).items():
            assert torch.equal(tensor, whole[key]), (name, key)


def test_masks_and_plain_prompts_come_with_their_samples(make_batches: MakeBatches) -> None:
    plain = make_batches(6, 1).get(0, 0)
    assert plain.weights is plain.plain is None
    batches = make_batches(6, 1, masks=MaskSource.folder, outside_mask=OutsideMask.frozen)
    batch = batches.get(0, 0)
    assert torch.equal(batch.latents, plain.latents)  # the masks change nothing else
    assert batch.weights is not None and batch.plain is not None
    samples = [batches.dataset.sample(number) for number in range(6)]
    assert {sample.flipped for sample in samples} == {True, False}
    for sample, weights, text in zip(samples, batch.weights, batch.plain, strict=True):
        expected = torch.zeros(1, 8, 8)
        expected[..., : sample.image_id + 1] = 1
        torch.testing.assert_close(weights, expected.flip(-1) if sample.flipped else expected)
        assert text == sample.text.replace("{}", "object") != sample.text


def test_with_buckets_a_step_is_of_one_shape_however_it_is_cut(
    make_batches: MakeBatches, tmp_path: Path, tiny_backbone: Backbone
) -> None:
    Image.effect_noise((160, 80), 60).convert("RGB").save(tmp_path / "1.png")
    shapes = set()
    for step in range(6):
        whole = contents([make_batches(4, 1, square_mode=SquareMode.bucket).get(step, 0)])
        cut = [make_batches(2, 1, process, 2, square_mode=SquareMode.bucket).get(step, 0) for process in range(2)]
        assert all(torch.equal(tensor, whole[key]) for key, tensor in contents(cut).items())
        shapes.add(tuple(whole["latents"].shape))
    assert shapes == {(4, 4, 8, 8), (4, 4, 5, 11)}  # 40 x 88 pixels: a side that the U-Net cannot halve three times
    method = created(NeTI, NeTIConfig(), 16, tiny_backbone.word_embedding("teddy"), torch.Generator().manual_seed(0))
    objective = Objective(method, tiny_backbone)
    assert all(
        objective(make_batches(4, 1, square_mode=SquareMode.bucket).get(step, 0)).isfinite() for step in range(4)
    )


def test_drawing_twice_or_with_other_randomness_between_changes_nothing(make_batches: MakeBatches) -> None:
    batches = make_batches(2, 2)
    first = contents([batches.get(7, 1)])
    torch.manual_seed(123)
    torch.rand(10)
    again = contents([batches.get(7, 1)])
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_no_sample_is_shown_twice_or_left_out(make_batches: MakeBatches) -> None:
    numbers = [
        number
        for step in range(3)
        for micro_step in range(2)
        for process in range(2)
        for number in make_batches(3, 2, process, 2).samples(step, micro_step)
    ]
    assert numbers == list(range(36))


def test_neighbouring_samples_differ(make_batches: MakeBatches) -> None:
    batch = make_batches(4, 1).get(0, 0)
    assert len({tuple(noise.flatten().tolist()) for noise in batch.noise}) == 4
    assert not torch.equal(sample_generator(1, 0).get_state(), sample_generator(2, 0).get_state())
    assert not torch.equal(sample_generator(1, 0).get_state(), sample_generator(0, 1).get_state())


def test_timesteps_are_uniform_over_the_whole_range() -> None:
    draws = torch.cat([torch.randint(1000, (1,), generator=sample_generator(0, i)) for i in range(20_000)])
    counts = torch.histc(draws.float(), bins=10, min=0, max=1000)
    assert draws.min() < 5 and draws.max() > 994
    assert (counts - 2000).abs().max() < 200  # 4.7 standard deviations
