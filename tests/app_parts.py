"""An app on the tiny backbone: an outputs folder, a recipe, and concepts that nobody trained."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from PIL import Image

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.methods import Method, NeTI, NeTIConfig, Start
from neti.training.app.config import AppConfig
from neti.training.app.services import Services

RECIPE = {
    "log": {"exp_name": "recipe"},
    "data": {
        "train_data_dir": "photos",
        "placeholder_token": "<recipe>",
        "resolution": 64,
        "dataloader_num_workers": 0,
    },
    "eval": {"validation_prompts": ["A photo of a {}"], "validation_seeds": [0], "num_validation_images": 1},
    "optim": {"max_train_steps": 8, "train_batch_size": 1, "gradient_accumulation_steps": 1, "seed": 0},
}


def write_recipe(folder: Path, backbone: Path) -> Path:
    """A recipe of neti on the tiny backbone, as scripts/train.py reads it."""
    model = {"pretrained_model_name_or_path": str(backbone)}
    evaluation = {**RECIPE["eval"], "num_denoising_steps": 2}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "eval": evaluation, "model": model}))
    return path


def make_services(folder: Path, backbone: Path, **options: object) -> Services:
    """The app's parts, with its outputs in `folder`/outputs."""
    recipes = {"neti": write_recipe(folder, backbone)}
    given = {"num_denoising_steps": 2, "presets": Path(__file__).parents[1] / "input_configs" / "presets", **options}
    return Services(AppConfig(outputs=folder / "outputs", recipes=recipes, **given))  # type: ignore[arg-type]


def new_neti(backbone: Backbone, seed: int = 0) -> NeTI:
    start = Start(backbone.word_embedding("toy"), torch.Generator().manual_seed(seed))
    return NeTI.create(NeTIConfig(), backbone.frame, start)


def put_concept(outputs: Path, name: str, method: Method, backbone: Path, photos: Path | None = None) -> Path:
    """A concept as a finished run of three steps would leave it."""
    folder = outputs / name
    folder.mkdir(parents=True)
    model = {"pretrained_model_name_or_path": str(backbone)}
    data = {"train_data_dir": str(photos or folder), "placeholder_token": f"<{name}>"}
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"model": model, "data": data, "log": {"exp_name": name}, "optim": {"max_train_steps": 3}})
    )
    path = folder / "concept-steps-3.safetensors"
    Concept(method.eval(), f"<{name}>", "toy", {"base_model": str(backbone), "step": 3}).save(path)
    return path


def write_photos(folder: Path, count: int = 3) -> list[Path]:
    """`count` photos of different colours."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.effect_noise((64, 64), 40 + number).convert("RGB").save(path)
    return paths


def with_two_concepts(folder: Path, backbone: Path) -> Services:
    """The app's parts, with two concepts, toy and cat, in the library."""
    encoder = Backbone.from_pretrained(str(backbone), components=("text_encoder",))
    made = make_services(folder, backbone)
    for seed, name in enumerate(("toy", "cat")):
        put_concept(made.places.outputs, name, new_neti(encoder, seed), backbone)
    return made
