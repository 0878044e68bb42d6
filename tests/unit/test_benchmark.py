"""The benchmark's parts; scripts/benchmark.py itself runs in tests/e2e."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_backbone import build_tiny_backbone
from tiny_xl import build_tiny_xl
from torch.nn import functional as F

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.denoiser import Denoiser
from neti.models.conditioning.conditioning import plain_condition
from neti.training.studies.benchmark.arithmetic import count, step_cost, text_per_layer
from neti.training.studies.benchmark.memory import resident
from neti.training.studies.benchmark.report import render_chapter
from neti.training.studies.benchmark.training import Trainers
from neti.training.studies.random_weights import sd14
from neti.training.studies.timing import Ratio, Timing, in_turn

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
    assert count(lambda: F.scaled_dot_product_attention(query, key, key)).flops == products
    both = count(lambda: F.scaled_dot_product_attention(query, key, key).sum().backward()).flops
    assert both == products + products // 2 * 5  # five products in the fused backward pass


def test_bytes_are_those_of_inputs_and_outputs_and_views_are_free() -> None:
    x, weight = torch.zeros(4, 8), torch.zeros(8, 16)
    assert count(lambda: x @ weight).bytes == 4 * (4 * 8 + 8 * 16 + 4 * 16)
    assert count(lambda: x.t().view(2, 4, 4)[0]).bytes == 0
    assert count(lambda: x.add_(1)).bytes == 4 * (32 + 32)  # read and written


@pytest.mark.parametrize("build", [build_tiny_backbone, build_tiny_xl])
def test_a_training_step_does_what_is_counted_without_it_and_nothing_twice(
    build: Callable[[], Backbone], tmp_path: Path
) -> None:
    """The arithmetic of a real step is that of its parts, counted on shapes alone."""
    backbone = build()
    trainers = Trainers(backbone, tmp_path)
    trainer = trainers.make(2)
    real = count(trainers.steps(trainer, 1)).flops
    cost = step_cost(backbone.to("meta"), 2)
    assert real == cost.whole.flops
    assert cost.unet_backward.flops < 1.5 * cost.unet.flops, "no gradients of frozen weights"


def test_arithmetic_is_counted_at_the_real_size_without_weights() -> None:
    """As measured on real tensors of this size: 2.15 TFLOP per sample, a quarter of it above the U-Net."""
    cost = step_cost(sd14("meta", torch.bfloat16), 1)
    unet = cost.unet + cost.unet_backward
    assert cost.whole.flops / 1e12 == pytest.approx(2.15, abs=0.01)
    assert cost.whole.flops / unet.flops == pytest.approx(1.25, abs=0.01)
    assert cost.unet_backward.flops / cost.unet_backward_to_latents.flops == pytest.approx(0.926, abs=0.001)


def test_text_is_encoded_per_place_and_not_per_layer() -> None:
    """11 rows of SDXL's text and not 70, 11 and not 28 of the tiny one, and one more for the pooled text."""
    backbone = build_tiny_xl().to("meta")
    cost, per_layer = step_cost(backbone, 1), step_cost(text_per_layer(backbone), 1)
    assert per_layer.unet.flops == cost.unet.flops
    assert per_layer.text.flops / cost.text.flops == pytest.approx((28 + 1) / (11 + 1), rel=0.02)


def test_the_backward_pass_stops_at_the_first_layer_that_reads_the_text(tiny_backbone: Backbone) -> None:
    needs: dict[str, bool] = {}
    block = tiny_backbone.unet.down_blocks[0]
    for name, module in {"resnet": block.resnets[0], "attention": block.attentions[0]}.items():
        module.register_forward_hook(lambda _, __, out, name=name: needs.update({name: out[0].requires_grad}))
    conditioning = plain_condition(tiny_backbone.text, ["a cat"], tiny_backbone.frame)
    conditioning.keys.requires_grad_()
    Denoiser(tiny_backbone)(torch.zeros(1, 4, 8, 8), torch.tensor(1), conditioning).sum().backward()
    assert needs == {"resnet": False, "attention": True}


def test_trainers_that_take_turns_all_step(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """One accumulates, the other does not: neither skips its optimizer's step for the other's count."""
    trainers = Trainers(tiny_backbone, tmp_path)
    whole, cut = trainers.make(2), trainers.make(1, 2)
    for trainer in (cut, whole, cut, whole):
        before = [parameter.detach().clone() for parameter in trainer.setup.method.parameters()]
        trainers.steps(trainer, 1)()
        after = list(trainer.setup.method.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_memory_is_that_of_this_process_alone() -> None:
    """`ru_maxrss` of a new process begins with the memory of the one that started it."""
    big = torch.ones(2**27)  # 512 MiB
    code = "from neti.training.studies.benchmark.memory import resident; print(resident())"
    own = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    del big
    assert own < resident() - 2**28


def test_every_row_is_in_the_chapter() -> None:
    numbers = itertools.count()
    row = {key: f"{key} {next(numbers)}" for key in ("what", "value", "counted", "wanted", "note")}
    machine = {"processor": "a CPU", "cores": 2, "threads": 1, "system": "Linux", "load": 0.5, "torch": "2.0"}
    record = {"settings": {"batch": 8, "resolution": None}, "machine": machine, "tables": {"miniature: images": [row]}}
    chapter = render_chapter(record)
    assert "| " + " | ".join(row.values()) + " |" in chapter and "#### miniature: images" in chapter
    assert "Machine: a CPU, 2 cores" in chapter
    assert "Settings: batch 8." in chapter and "Versions: torch 2.0." in chapter
    on_gpu = render_chapter({**record, "machine": {**machine, "accelerator": "a GPU"}})
    assert "Machine: a GPU, 2 cores" in on_gpu
