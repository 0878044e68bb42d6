"""A reproduction plan of seconds: the tiny backbone, the tiny judge, two concepts, two denoising steps."""

from __future__ import annotations

from pathlib import Path

import yaml
from tiny_judge import photos, save_clip

from neti.training.studies.reproduction.config import ReproductionConfig
from neti.utils.config.parsing import parse_config

SMALL = "--model.mapper_hidden_dim 16 --model.num_pe_frequencies 16"  # of NeTI's mapper


def write_plan(folder: Path, backbone: Path, **changes: object) -> Path:
    """Write photos, judge, training config and plan into `folder`; returns the plan's file."""
    if not (folder / "judge").exists():
        save_clip(folder / "judge")
        for number, name in enumerate(("bear", "cube", "ball")):
            photos(folder / "photos" / name, range(10 * number, 10 * number + 2))
    train = {
        "log": {"exp_name": "given by the plan"},
        "data": {
            "train_data_dir": "given by the plan",
            "placeholder_token": "<given-by-the-plan>",
            "resolution": 64,
            "dataloader_num_workers": 0,
        },
        "model": {"pretrained_model_name_or_path": str(backbone)},
        "optim": {"train_batch_size": 1, "gradient_accumulation_steps": 1},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(train))
    plan = {
        "train_config": str(folder / "train.yaml"),
        "concepts": [f"{name} | teddy | {folder / 'photos' / name}" for name in ("bear", "cube")],
        "tuning_concepts": [f"ball | teddy | {folder / 'photos' / 'ball'}"],
        "methods": [f"neti | 1e-2 | 1 2 | {SMALL}", "xti | 1e-2 1e+30 | 2 | --model.method xti"],
        "prompts": ["A photo of a {}", "{} on a beach"],
        "seeds": [0],
        "short_prompts": ["A photo of a {}"],
        "short_seeds": [0],
        "truncations": [4],
        "num_denoising_steps": 2,
        "judge": str(folder / "judge"),
        "bootstrap_samples": 100,
        "device": "cpu",
        "work_dir": str(folder / "work"),
        "page": str(folder / "docs" / "reproduction.md"),
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**plan, **changes}))
    return path


def read_plan(path: Path, *arguments: str) -> ReproductionConfig:
    """The plan in a file, with command-line arguments."""
    return parse_config(ReproductionConfig, ["--config_path", str(path), *arguments])
