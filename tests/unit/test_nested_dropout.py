"""Nested dropout: what is kept, and how often."""

from __future__ import annotations

import pytest
import torch

from neti.models.methods.neti.nested_dropout import draw_kept, truncate


def test_truncate_keeps_the_leading_units() -> None:
    hidden = torch.ones(2, 3, 8)
    assert truncate(hidden, 5).sum(dim=-1).unique().tolist() == [5]
    kept = torch.tensor([[0, 3, 8], [1, 2, 4]])
    out = truncate(hidden, kept)
    assert torch.equal(out.sum(dim=-1), kept.float())
    assert out[0, 1].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_cut_units_get_no_gradient() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    truncate(hidden, torch.tensor([0, 3, 5, 8])).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.sum(dim=-1).tolist() == [0, 3, 5, 8]


def test_distribution_of_the_kept_units() -> None:
    kept = draw_kept(20_000, 2, width=128, probability=0.5, generator=torch.Generator().manual_seed(0))
    assert kept.shape == (20_000, 2)
    dropped = kept < 128
    assert torch.equal(dropped[:, 0], dropped[:, 1]), "one coin per layer, shared by its samples"
    assert dropped[:, 0].float().mean().item() == pytest.approx(0.5, abs=0.015)
    k = kept[dropped].view(-1, 2)
    assert (k[:, 0] != k[:, 1]).float().mean() > 0.98, "but every sample has a cut of its own"
    assert (k.min(), k.max()) == (0, 127)
    counts = torch.bincount(k.flatten(), minlength=128).float()
    chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_squared < 195, "uniform over 0..127: the 99.99% quantile for 127 degrees of freedom"


@pytest.mark.parametrize(("probability", "all_kept"), [(0.0, True), (1.0, False)])
def test_probability_at_its_ends(probability: float, all_kept: bool) -> None:
    kept = draw_kept(100, 3, width=16, probability=probability)
    assert bool((kept == 16).all()) == all_kept
    assert bool((kept < 16).all()) != all_kept


def test_a_generator_fixes_the_draw() -> None:
    draws = [draw_kept(16, 4, 128, 0.5, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)
