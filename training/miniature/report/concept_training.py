"""Learning the held-out concepts for the report: one run of scripts/train.py each, as a user would start it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ....utils.config.parsing import parse_config
from ....utils.errors import UserError
from ....utils.hashing import folder_hash, json_hash
from ...coach.run_folder import RunFolder
from ...config.run import RunConfig
from ..world.concepts import ConceptPhotos


def trained_file(
    photos: ConceptPhotos, *, train_config: Path, base_model: str, model: str, folder: Path, train_script: Path
) -> Path:
    """The final concept file of `photos`, learned now unless an earlier call finished it; a started run is resumed.

    train_config: the YAML of the run. base_model: what to load; model: digest of its files. folder: of the runs, each
    named by concept and by a hash of model, photos and recipe. Raises UserError if the training fails.
    """
    recipe = json_hash([model, folder_hash(photos.folder), folder_hash(train_config) if train_config.exists() else ""])
    options = {
        "config_path": train_config,
        "log.exp_dir": folder,
        "log.exp_name": f"{photos.name}-{recipe}",
        "log.report_to": "none",
        "data.train_data_dir": photos.folder,
        "data.super_category_token": photos.super_category,
        "data.placeholder_token": f"<{photos.name}>",
        "model.pretrained_model_name_or_path": base_model,
        "eval.validation_prompts": "null",
        "resume": "latest",
    }
    arguments = [f"--{key}={value}" for key, value in options.items()]
    config = parse_config(RunConfig, arguments)
    file = RunFolder(config.log.run_dir, config.log.tracker_dir).concept(config.optim.max_train_steps)
    if not file.exists():
        print(f"learning {photos.name}: {file}", flush=True)
        code = subprocess.run([sys.executable, str(train_script), *arguments]).returncode
        if code != 0:
            raise UserError(f"learning {photos.name} ended with exit code {code}; see above, then run the report again")
    return file
