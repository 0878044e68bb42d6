"""The benchmark's parts; scripts/benchmark.py itself runs in tests/e2e."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from neti.models.backbone.backbone import Backbone
from neti.training.studies.benchmark.page import render_page
from neti.training.studies.benchmark.timing import Ratio, Timing, count_flops, in_turn
from neti.training.studies.benchmark.workshop import stock_attention

CPU = torch.device("cpu")


def test_works_take_turns_after_a_round_that_does_not_count() -> None:
    done: list[str] = []
    works: dict[str, Callable[[], object]] = {name: lambda name=name: done.append(name) for name in "AB"}
    found = in_turn(works, 3, CPU)
    assert done == ["A", "B"] * 4
    assert all(len(timing.seconds) == 3 for timing in found.values())


def test_a_ratio_is_taken_round_by_round() -> None:
    """Round 2 was slow for both: its ratio is like the others."""
    ratio = Ratio.of(Timing((2.0, 20.0, 3.3), 0), Timing((1.0, 10.0, 1.5), 0))
    assert (ratio.middle, ratio.low, ratio.high) == (2.0, 2.0, pytest.approx(2.2))
    assert str(ratio) == "2.00 (2.00 to 2.20)"


def test_operations_of_attention_are_counted_on_a_cpu_too() -> None:
    query, key = (torch.randn(2, 4, length, 8, requires_grad=True) for length in (32, 16))
    products = 2 * (2 * 4 * 32 * 16 * 8) * 2  # scores and weighted values, a multiplication and an addition each
    assert count_flops(lambda: F.scaled_dot_product_attention(query, key, key)) == products
    both = count_flops(lambda: F.scaled_dot_product_attention(query, key, key).sum().backward())
    assert both == products + products // 2 * 5  # five products in the fused backward pass


def test_attention_is_put_back(tiny_backbone: Backbone) -> None:
    before = dict(tiny_backbone.unet.attn_processors)
    with stock_attention(tiny_backbone), torch.no_grad():
        tiny_backbone.unet(torch.zeros(1, 4, 8, 8), 0, encoder_hidden_states=torch.zeros(1, 77, 32))
    assert dict(tiny_backbone.unet.attn_processors) == before


def test_every_chapter_and_row_is_on_the_page() -> None:
    numbers = itertools.count()
    row = {key: f"{key} {next(numbers)}" for key in ("what", "value", "counted", "wanted", "note")}
    machine = {"processor": "a CPU", "cores": 2, "threads": 1, "system": "Linux", "load": 0.5, "torch": "2.0"}
    chapter = {"settings": {"batch": 8, "resolution": None}, "machine": machine, "tables": {"miniature: images": [row]}}
    page = render_page({"here": chapter, "there": {**chapter, "machine": {**machine, "accelerator": "a GPU"}}})
    assert page.count("| " + " | ".join(row.values()) + " |") == 2
    assert "## here" in page and "Machine: a CPU, 2 cores" in page
    assert "## there" in page and "Machine: a GPU, 2 cores" in page
    assert "Settings: batch 8." in page and "Versions: torch 2.0." in page
