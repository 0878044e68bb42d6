"""Every YAML file in input_configs parses as what it is for."""

from __future__ import annotations

from pathlib import Path

from neti.training.config import RunConfig
from neti.training.inference_config import InferenceConfig
from neti.utils.config_io import parse_config, to_plain_dict
from neti.utils.yaml_text import load_yaml

FOLDER = Path(__file__).parents[2] / "input_configs"


def test_every_file_parses() -> None:
    seen = []
    for path in sorted(FOLDER.glob("*.yaml")):
        config_class = RunConfig if "log" in load_yaml(path) else InferenceConfig
        parse_config(config_class, ["--config_path", str(path)])
        seen.append(path.name)
    assert {"inference.yaml", "train.yaml"} <= set(seen)
    assert len(seen) == len(list(FOLDER.rglob("*.y*ml"))), (
        "a YAML file hides below input_configs or under another suffix"
    )


def test_every_file_opens_with_how_to_launch_it() -> None:
    for path in FOLDER.glob("*.yaml"):
        header = "".join(line for line in path.read_text().splitlines(keepends=True)[:8] if line.startswith("#"))
        assert f"--config_path input_configs/{path.name}" in header, path


def test_train_yaml_is_the_papers_recipe() -> None:
    recipe = to_plain_dict(parse_config(RunConfig, ["--config_path", str(FOLDER / "train.yaml")]))
    names = ["log.exp_name=x", "data.train_data_dir=x", "data.placeholder_token=x", "data.super_category_token=x"]
    defaults = to_plain_dict(parse_config(RunConfig, [f"--{name}" for name in names]))
    changed = {
        f"{group}.{key}"
        for group in ("log", "data", "model", "eval", "optim")
        for key in recipe[group]
        if recipe[group][key] != defaults[group][key]
    }
    own = {"log.exp_name", "data.train_data_dir", "data.placeholder_token", "data.super_category_token"}
    assert changed == own | {"eval.validation_steps"}  # 250 in the public recipe, where the code's default is 100
