"""Every YAML file in input_configs parses as what it is for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from neti.models.generation.config import InferenceConfig
from neti.models.methods.perfusion.config import PerfusionOptions
from neti.training.app.config import AppConfig
from neti.training.config.options import MaskSource, NormRule, OutsideMask
from neti.training.config.run import ModelConfig, RunConfig
from neti.training.elite.config import EncoderConfig
from neti.training.evaluation.config import MetricsConfig
from neti.training.jobs.many_config import ManyConfig
from neti.training.miniature.pretraining.config import MiniatureConfig
from neti.training.miniature.report.config import ReportConfig
from neti.training.studies.benchmark.config import BenchmarkConfig
from neti.training.studies.mixing.config import MixingConfig
from neti.training.studies.reproduction.config import ReproductionConfig
from neti.utils.config.parsing import Config, parse_config, to_plain_dict

FOLDER = Path(__file__).parents[2] / "input_configs"
CONFIGS: dict[str, type[Config]] = {
    "train": RunConfig,
    "train_elite": EncoderConfig,
    "inference": InferenceConfig,
    "compute_metrics": MetricsConfig,
    "pretrain_miniature": MiniatureConfig,
    "miniature_report": ReportConfig,
    "benchmark": BenchmarkConfig,
    "measure_mixing": MixingConfig,
    "reproduce_paper": ReproductionConfig,
    "train_many": ManyConfig,
    "app": AppConfig,
}
DATA = {"concepts.yaml"}  # a table of the demo concepts, not a config
PRESETS = {  # laid over a training recipe -> the group of settings that each may change
    "reference.yaml": "model",
    "paper.yaml": "model",
    "compact.yaml": "model",
    "frozen_ground.yaml": "data",
}
DRAWING = "key_lock.yaml"  # a preset laid over a recipe for drawing


def test_every_file_parses() -> None:
    seen = []
    for path in sorted(FOLDER.glob("*.yaml")):
        launch = re.search(rf"scripts/(\w+)\.py --config_path input_configs/{path.name}", path.read_text())
        assert launch is not None, path
        parse_config(CONFIGS[launch[1]], ["--config_path", str(path)])
        seen.append(path.name)
    assert {"inference.yaml", "train.yaml", "metrics.yaml"} <= set(seen)
    assert set(seen) | DATA | set(PRESETS) | {DRAWING} == {path.name for path in FOLDER.rglob("*.y*ml")}, (
        "a YAML file hides below input_configs or under another suffix"
    )


def test_every_file_opens_with_how_to_launch_it() -> None:
    for path in FOLDER.glob("*.yaml"):
        header = "".join(line for line in path.read_text().splitlines(keepends=True)[:8] if line.startswith("#"))
        assert f"--config_path input_configs/{path.name}" in header, path


def test_every_preset_goes_on_top_of_a_recipe() -> None:
    recipe = ["--config_path", str(FOLDER / "train.yaml")]
    plain = parse_config(RunConfig, recipe)
    models = {}
    for path in sorted(path for path in (FOLDER / "presets").glob("*.yaml") if path.name != DRAWING):
        header = f"input_configs/train.yaml --config_path input_configs/presets/{path.name}"
        assert header in path.read_text(), path
        config = parse_config(RunConfig, [*recipe, "--config_path", str(path)])
        groups = ("data", "model", "optim", "eval")
        assert {g for g in groups if getattr(config, g) != getattr(plain, g)} <= {PRESETS[path.name]}, path
        models[path.name] = config.model
        if path.name == "frozen_ground.yaml":
            assert (config.data.masks, config.data.outside_mask) == (MaskSource.folder, OutsideMask.frozen)
    assert models.keys() == PRESETS.keys()
    assert models["reference.yaml"] == ModelConfig(), "the defaults are the public code's"
    assert models["paper.yaml"] == replace(ModelConfig(), norm_rule=NormRule.base)


def test_the_key_lock_goes_on_top_of_a_recipe_for_drawing() -> None:
    recipe, preset = FOLDER / "inference.yaml", FOLDER / "presets" / DRAWING
    assert f"input_configs/inference.yaml --config_path input_configs/presets/{DRAWING}" in preset.read_text()
    plain = parse_config(InferenceConfig, ["--config_path", str(recipe)])
    locked = parse_config(InferenceConfig, ["--config_path", str(recipe), "--config_path", str(preset)])
    assert locked == replace(plain, settings={"key_lock": (True,)})


def test_train_yaml_is_the_papers_recipe() -> None:
    recipe = to_plain_dict(parse_config(RunConfig, ["--config_path", str(FOLDER / "train.yaml")]))
    names = ["log.exp_name=x", "data.train_data_dir=x", "data.placeholder_token=<x>", "data.super_category_token=x"]
    defaults = to_plain_dict(parse_config(RunConfig, [f"--{name}" for name in names]))
    changed = {
        f"{group}.{key}"
        for group in ("log", "data", "model", "eval", "optim")
        for key in recipe[group]
        if recipe[group][key] != defaults[group][key]
    }
    own = {"log.exp_name", "data.train_data_dir", "data.placeholder_token", "data.super_category_token"}
    assert changed == own | {"eval.validation_steps"}  # 250 in the public recipe, where the code's default is 100


def test_train_perfusion_is_the_papers_recipe() -> None:
    recipe = parse_config(RunConfig, ["--config_path", str(FOLDER / "train_perfusion.yaml")])
    optim, perfusion = recipe.optim, recipe.model.perfusion
    assert (optim.max_train_steps, optim.train_batch_size * optim.gradient_accumulation_steps) == (400, 16)
    assert not optim.scale_lr
    scales = (perfusion.value_lr_scale, perfusion.word_lr_scale)
    assert [optim.learning_rate * scale for scale in scales] == pytest.approx([0.03, 0.006])
    assert (perfusion.beta, perfusion.tau, perfusion.inference_beta, perfusion.inference_tau) == (0.75, 0.1, 0.7, 0.15)
    assert perfusion == replace(PerfusionOptions(), covariance="covariance_sd14.safetensors"), "else the defaults"
