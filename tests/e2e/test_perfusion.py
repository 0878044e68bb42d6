"""Perfusion on the bundled miniature, from photos to pictures: resuming, processes, precisions, the concept file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from load_script import load_script
from training_runs import SCRIPT, arguments, assert_same_bits, make_config, start_process, tensors

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.methods import Perfusion, Start, TextualInversion, WordVectorsConfig

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
STEPS = 4


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "data__train_data_dir": ROOT / "input_configs" / "concepts" / "taxi",
        "data__super_category_token": "car",
        "data__templates": "short",
        "model__method": "perfusion",
        "optim__max_train_steps": STEPS,
        "optim__train_batch_size": 2,
        "optim__learning_rate": 0.03,
        "optim__scale_lr": False,
        **changes,
    }


def train(root: Path, name: str, **changes: Any) -> None:
    process = start_process(make_config(root, Path("miniature"), log__exp_name=name, **settings(**changes)))
    process.join()
    assert process.exitcode == 0


def losses(root: Path, name: str) -> list[float]:
    lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of four steps in it, called toy."""
    root = tmp_path_factory.mktemp("perfusion")
    train(root, "toy")
    return root


def test_what_is_learned_is_in_the_file(root: Path) -> None:
    concept = Concept.load(root / "runs/toy" / f"concept-steps-{STEPS}.safetensors")
    assert isinstance(concept.method, Perfusion) and concept.method.config.super_category == "car"
    outputs = sum(layer.width for layer in concept.method.frame.layers)
    assert {name: tensor.numel() for name, tensor in concept.method.state_dict().items()} == {
        "word": 128,
        "key": 128,
        "key_targets": outputs,
        "value_targets": outputs,
    }
    first, last = tensors(root, 2), tensors(root, STEPS)
    assert torch.equal(first["key_targets"], last["key_targets"])
    for name in ("word", "key", "value_targets"):
        assert not torch.equal(first[name], last[name]), name


def test_a_resumed_run_is_bit_for_bit_the_same(root: Path) -> None:
    train(root, "cut", optim__max_train_steps=2)
    train(root, "cut", resume="latest")
    for step in (2, STEPS):
        assert_same_bits(tensors(root, step, "cut"), tensors(root, step))
    assert losses(root, "cut") == losses(root, "toy")


def test_gradient_checkpointing_changes_nothing(root: Path) -> None:
    train(root, "checkpointing", optim__gradient_checkpointing=True)
    assert_same_bits(tensors(root, STEPS, "checkpointing"), tensors(root, STEPS))


def test_bfloat16_learns_nearly_the_same(root: Path) -> None:
    train(root, "bf16", optim__mixed_precision="bf16")
    assert losses(root, "bf16") == pytest.approx(losses(root, "toy"), rel=0.05)
    start, own, other = tensors(root, 2), tensors(root, STEPS, "bf16"), tensors(root, STEPS)
    assert (own["key"] - other["key"]).abs().max() < 0.05 * other["key"].abs().max()
    assert not torch.equal(own["value_targets"], start["value_targets"])


def test_two_processes_are_one(root: Path) -> None:
    """Each sees half of every micro-batch, and the running key is that of both."""
    changes = settings(log__exp_name="two", optim__train_batch_size=1)
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *arguments(root, Path("miniature"), **changes)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert losses(root, "two") == pytest.approx(losses(root, "toy"), rel=1e-4)
    together, alone = tensors(root, STEPS, "two"), tensors(root, STEPS)
    for name in alone:
        assert (together[name] - alone[name]).abs().max() < 1e-3, name
    assert torch.equal(together["key_targets"], alone["key_targets"])


def test_pictures_of_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--input_dir", root / "runs/toy", "--inference_dir", root / "pictures", "--prompts", '["a photo of a {}"]']
    words += ["--num_denoising_steps", 2, "--torch_dtype", "fp32", "--device", "cpu"]
    assert run_script("inference", *words) == 0
    assert len(list((root / "pictures").rglob("42.png"))) == 1
    capsys.readouterr()
    assert run_script("inference", *words, "--truncation_idxs", "[16]") == 2
    assert "a concept of method 'perfusion' cannot be truncated" in capsys.readouterr().err


def test_several_in_one_prompt(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of Perfusion and one of Textual Inversion, a set of images for each beta; the same one twice is refused."""
    toy = root / "runs/toy" / f"concept-steps-{STEPS}.safetensors"
    backbone = Backbone.from_pretrained("miniature", components=("text_encoder",))
    other, cat = Concept.load(toy), backbone.word_embedding("cat")
    with torch.no_grad():
        other.method.state_dict()["key"].add_(torch.randn(128, generator=torch.Generator().manual_seed(0)))
    other.save(root / "other.safetensors")
    word = TextualInversion.create(WordVectorsConfig(), backbone.frame, Start(cat))
    Concept(word, "<cat>", "cat", {"base_model": "miniature"}).save(root / "cat.safetensors")
    words = [
        "--inference_dir",
        root / "several",
        "--num_denoising_steps",
        2,
        "--torch_dtype",
        "fp32",
        "--device",
        "cpu",
    ]
    concepts = f"{{taxi: {toy}, other: {root / 'other.safetensors'}, cat: {root / 'cat.safetensors'}, again: {toy}}}"
    prompt = "a {taxi} and a {other} with a {cat}"
    words += ["--concepts", concepts, "--settings", "{beta: [0.3, 0.7]}", "--prompts"]
    assert run_script("inference", *words, f'["{prompt}"]') == 0
    images = [root / "several" / prompt / f"42_beta_{beta}.png" for beta in (0.3, 0.7)]
    assert images[0].read_bytes() != images[1].read_bytes()
    capsys.readouterr()
    assert run_script("inference", *words, '["a {taxi} and a {again}"]') == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "have the same key: one Perfusion concept can stand in a prompt under one name only" in line


def run_script(name: str, *words: object) -> int:
    return load_script(name).main([str(word) for word in words])
