"""Methods other than NeTI go through the same training, concept file, continuation and inference."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from training_runs import make_config, tensors, write_images

from neti.models.concepts.concept import Concept
from neti.models.methods import METHODS
from neti.training.coach.launch import launch
from neti.utils.errors import UserError

pytestmark = pytest.mark.e2e
INFERENCE = Path(__file__).parents[2] / "scripts" / "inference.py"


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one state per process; every run here is to start like a process of its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def generate(*words: object) -> int:
    spec = importlib.util.spec_from_file_location("inference_script", INFERENCE)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.main([str(word) for word in words])


@pytest.mark.parametrize(("name", "rows"), [("textual_inversion", 1), ("xti", 16)])
def test_from_images_to_images(
    tmp_path: Path, tiny_backbone_folder: Path, capsys: pytest.CaptureFixture[str], name: str, rows: int
) -> None:
    write_images(tmp_path / "images")
    assert launch(make_config(tmp_path, tiny_backbone_folder, model__method=name)) == 0
    assert f"{name}, {rows * 32} trained parameters" in capsys.readouterr().out
    path = tmp_path / "runs/toy/concept-steps-4.safetensors"
    concept = Concept.load(path)
    assert type(concept.method) is METHODS[name]
    words = concept.method.vectors(torch.tensor([7])).words
    assert words.shape == (rows, 1, 32)
    assert len(words.unique(dim=0)) == rows, "each layer's vector went its own way"

    images = ["--input_dir", tmp_path / "runs/toy", "--inference_dir", tmp_path / "out", "--prompts", '["a {}"]']
    settings = ["--num_denoising_steps", 2, "--torch_dtype", "fp32", "--device", "cpu"]
    assert generate(*images, *settings) == 0
    assert len(list((tmp_path / "out").rglob("42.png"))) == 1
    capsys.readouterr()
    assert generate(*images, *settings, "--truncation_idxs", "[16]") == 2
    assert f"a concept of method '{name}' cannot be truncated" in capsys.readouterr().err

    start = {"model__mapper_checkpoint_path": path, "log__exp_name": "more", "optim__max_train_steps": 6}
    with pytest.raises(UserError, match=f"write model.method: {name}"):
        launch(make_config(tmp_path, tiny_backbone_folder, **start))
    with pytest.raises(UserError, match=r"was trained with false; write model\.key_lock: false"):
        launch(make_config(tmp_path, tiny_backbone_folder, **start, model__method=name, model__key_lock=True))
    assert launch(make_config(tmp_path, tiny_backbone_folder, **start, model__method=name)) == 0
    assert not torch.equal(tensors(tmp_path, 6, "more")["words"], words.detach())
