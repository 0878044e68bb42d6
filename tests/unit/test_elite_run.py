"""A run of training an encoder: its files, and that a stopped run goes on exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_elite import tiny_vision

from neti.models.conditioning.conditioning import plain_condition
from neti.models.methods.elite.files import load_encoder
from neti.models.methods.elite.mappers import LocalMapper
from neti.training.elite.config import GLOBAL, LOCAL, EncoderConfig
from neti.training.elite.launch import launch, make_encoder, make_samples, scale_to_text
from neti.utils.config.parsing import parse_config
from neti.utils.errors import UserError


@pytest.fixture
def command(tiny_backbone_folder, tmp_path):
    """Options of a run on a folder of four pictures, as (stage, further options) -> config."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (160, 200, 3)).astype(np.uint8)).save(tmp_path / f"images/{number}.png")
        mask = Image.new("L", (200, 160))
        mask.paste(255, (20 + 5 * number, 20, 150, 150))
        mask.save(tmp_path / f"masks/{number}.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    mask.save(tmp_path / "masks" / "bad.png")
    tiny_vision().tower.save_pretrained(tmp_path / "vision")

    def config(stage: str, name: str, *more: str) -> EncoderConfig:
        options = {
            "stage": stage,
            "log.exp_name": name,
            "log.exp_dir": tmp_path / "runs",
            "model.pretrained_model_name_or_path": tiny_backbone_folder,
            "model.vision": tmp_path / "vision",
            "data.images": tmp_path / "images",
            "data.masks": tmp_path / "masks",
            "data.resolution": 64,
            "data.workers": 0,
            "optim.train_batch_size": 2,
            "optim.gradient_accumulation_steps": 2,
            "optim.max_train_steps": 4,
            "optim.effective_lr": 1e-3,
            "optim.device": "cpu",
        }
        return parse_config(EncoderConfig, [f"--{key}={value}" for key, value in options.items()] + list(more))

    return config


def mappers(folder: Path, frame) -> dict[str, torch.Tensor]:
    encoder = load_encoder(folder, frame)
    parts = {"global": encoder.of_words, "local": encoder.of_patches, "vision": encoder.vision}
    return {f"{part}.{k}": v for part, module in parts.items() if module for k, v in module.state_dict().items()}


def test_both_stages_and_a_resumed_run(command, tiny_backbone, tmp_path, capsys):
    runs, frame = tmp_path / "runs", tiny_backbone.frame
    assert launch(command("global", "whole", "--optim.lr_scheduler=cosine")) == 0
    assert "encoder-steps-4.safetensors" in capsys.readouterr().out
    records = (runs / "whole" / "metrics.jsonl").read_text().splitlines()
    assert len(records) == 4 and '"skipped": ' in records[-1] and not records[-1].endswith('"skipped": 0}')

    assert launch(command("global", "cut", "--optim.lr_scheduler=cosine", "--log.save_steps=2")) == 0
    for kept in (runs / "cut" / "checkpoints" / "step-4.pt",):
        kept.unlink()
    assert launch(command("global", "cut", "--optim.lr_scheduler=cosine", "--resume=latest")) == 0
    whole, cut = (mappers(runs / name / "encoder-steps-4.safetensors", frame) for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())

    assert launch(command("local", "patches", f"--model.encoder={runs / 'whole' / 'encoder-steps-4.safetensors'}")) == 0
    both = mappers(runs / "patches" / "encoder-steps-4.safetensors", frame)  # the tower came along
    assert all(torch.equal(tensor, both[name]) for name, tensor in whole.items())
    assert sum(name.startswith("local.") for name in both) == 132

    further = [f"--model.encoder={runs / 'patches' / 'encoder-steps-4.safetensors'}", "--optim.effective_lr=1e-9"]
    for stage in ("global", "local"):  # from there, not from the beginning
        assert launch(command(stage, f"further-{stage}", *further)) == 0
        again = mappers(runs / f"further-{stage}" / "encoder-steps-4.safetensors", frame)
        assert all(torch.allclose(tensor, again[name], atol=1e-6) for name, tensor in both.items() if name in again)
        assert not all(torch.equal(tensor, again[name]) for name, tensor in both.items() if name.startswith(stage))


def test_a_vision_tower_that_learns_is_saved_with_the_encoder(command, tiny_backbone, tmp_path):
    assert launch(command("global", "joint", "--optim.vision_lr=1e-3", "--optim.max_train_steps=1")) == 0
    saved = load_encoder(
        tmp_path / "runs" / "joint" / "encoder-steps-1.safetensors", tiny_backbone.frame
    ).vision.state_dict()
    changed = {k for k, v in tiny_vision().state_dict().items() if not torch.equal(v, saved[k])}
    assert {"tower.pre_layrnorm.weight", "tower.encoder.layers.5.mlp.fc2.weight"} <= changed
    assert not any("post_layernorm" in name for name in changed)


def test_old_encoders_go_with_their_states(command, tmp_path):
    assert launch(command("global", "many", "--log.save_steps=1", "--log.checkpoints_total_limit=2")) == 0
    assert sorted(p.name for p in (tmp_path / "runs" / "many").glob("encoder-*")) == [
        "encoder-steps-3.safetensors",
        "encoder-steps-4.safetensors",
    ]


def test_new_mappers_start_at_the_length_of_the_text_they_stand_for(command, tiny_backbone):
    def length(vectors: torch.Tensor) -> float:
        return torch.linalg.vector_norm(vectors, dim=-1).mean().item()

    config = command("global", "start")
    encoder, is_new = make_encoder(config, tiny_backbone)
    assert is_new
    samples = make_samples(config, encoder)
    scale_to_text(encoder, samples, tiny_backbone, GLOBAL)
    words = encoder.words(torch.stack([samples[number].image for number in range(16)]))
    known = tiny_backbone.text_encoder.embeddings.token_embedding.weight
    assert length(words) == pytest.approx(length(known), rel=1e-4)

    frame = tiny_backbone.frame
    encoder.of_patches = LocalMapper(frame.layers, encoder.vision.width, frame.text_width)
    scale_to_text(encoder, samples, tiny_backbone, LOCAL)
    patches = encoder.patches(torch.stack([samples[number].object for number in range(16)]), torch.ones(16, 1, 32, 32))
    encoding = plain_condition(tiny_backbone.text, [""], frame).keys
    assert length(patches) == pytest.approx(length(encoding), rel=1e-4)


@pytest.mark.parametrize(
    ("stage", "option", "message"),
    [
        ("local", "", "model.encoder is needed by stage local"),
        ("global", "--data.other_scene=0.5", "belong to the miniature's world"),
        ("local", "--optim.vision_lr=1", "optim.vision_lr belongs to stage global"),
        ("global", "--optim.name_target=1", "need stage global and the miniature.s world"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(command, stage, option, message):
    with pytest.raises(UserError, match=message):
        command(stage, "run", *([option] if option else []))


def test_nothing_is_written_by_a_dry_run_or_a_wrong_model(command, tmp_path):
    assert launch(command("global", "dry", "--dry_run")) == 0
    with pytest.raises(UserError, match="vision tower"):
        launch(command("global", "wrong", f"--model.vision={tmp_path / 'nothing'}"))
    assert not (tmp_path / "runs").exists()
