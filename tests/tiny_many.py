"""Many trainings of seconds: the tiny backbone, a few folders of pictures, two steps each."""

from __future__ import annotations

from pathlib import Path

import yaml
from tiny_judge import photos


def write_many(folder: Path, backbone: Path, names: list[str], steps: int = 2, **changes: object) -> Path:
    """Write a folder of pictures for each name, the training config and the plan into `folder`; returns the plan."""
    for number, name in enumerate(names):
        if not (folder / "photos" / name).exists():
            photos(folder / "photos" / name, range(10 * number, 10 * number + 2))
    train = {
        "log": {"exp_name": "given by the plan", "report_to": "none", "save_steps": 1},
        "data": {
            "train_data_dir": "given by the plan",
            "placeholder_token": "<given-by-the-plan>",
            "super_category_token": "teddy",
            "resolution": 64,
            "dataloader_num_workers": 0,
        },
        "model": {
            "pretrained_model_name_or_path": str(backbone),
            "mapper_hidden_dim": 16,
            "num_pe_frequencies": 16,
        },
        "eval": {"validation_prompts": None},
        "optim": {"train_batch_size": 1, "gradient_accumulation_steps": 1, "max_train_steps": steps},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(train))
    plan = {
        "train_config": str(folder / "train.yaml"),
        "concepts": str(folder / "photos"),
        "output_dir": str(folder / "out"),
        "device": "cpu",
        "jobs": {"cpus_per_worker": 1},
    }
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump({**plan, **changes}))
    return path
