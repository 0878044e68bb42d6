"""Where the base model of a concept lies: its file tells no path of anybody's disk, its run does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from frames import created
from torch import Generator, ones

from neti.models.backbone.files.locate import find_model
from neti.models.concepts.concept import Concept
from neti.models.concepts.files import explicit_files
from neti.models.methods import NeTI, NeTIConfig
from neti.utils.errors import UserError

OPTION = "--pretrained_model_name_or_path"


def concept_of(base_model: str | None) -> Concept:
    config = NeTIConfig(hidden_dim=4, num_frequencies=2, num_time_anchors=1)
    method = created(NeTI, config, 4, ones(32), Generator().manual_seed(0))
    return Concept(method.eval(), "<toy>", "teddy", {"base_model": base_model} if base_model else {})


def test_a_run_knows_where_its_base_model_lies_and_a_moved_concept_says_what_to_pass(tmp_path: Path) -> None:
    model, run = tmp_path / "models" / "sd-v1-4", tmp_path / "run"
    model.mkdir(parents=True)
    run.mkdir()
    concept_of(str(model)).save(run / "a.safetensors")
    (run / "config.yaml").write_text(json.dumps({"model": {"pretrained_model_name_or_path": str(model)}}))
    inside = explicit_files(run / "a.safetensors", None).load()
    assert inside.base_model(run / "a.safetensors", OPTION) == str(model)

    moved = Path(shutil.copy(run / "a.safetensors", tmp_path / "moved.safetensors"))
    with pytest.raises(UserError) as caught:
        explicit_files(moved, None).load().base_model(moved, OPTION)
    assert str(caught.value) == (
        f"{moved} was trained on a local model called sd-v1-4, and a concept file does not say where that lies: pass "
        f"{OPTION} FOLDER"
    )


def test_a_name_that_says_where_a_model_is_needs_no_option() -> None:
    for name in ("miniature", "CompVis/stable-diffusion-v1-4", "models/of/mine"):
        assert concept_of(name).base_model(Path("a"), OPTION) == name
    with pytest.raises(UserError, match=f"a does not name its base model: pass {OPTION}"):
        concept_of(None).base_model(Path("a"), OPTION)


@pytest.mark.parametrize("name", ["models/of/mine", "./mine", "my/model", "/gone/model"])
def test_a_path_that_leads_nowhere_from_here_says_what_to_pass(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no such folder.*pretrained_model_name_or_path") as caught:
        find_model(name, weights=())
    assert "\n" not in str(caught.value)
