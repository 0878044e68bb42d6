"""Training that starts at the word ELITE gives for the photos: what each method starts as, resuming, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from tiny_elite import tiny_encoder
from training_runs import arguments, assert_same_bits, make_config, tensors, write_images

from neti.models.backbone.backbone import Backbone
from neti.models.methods import METHODS, Start
from neti.models.methods.elite.encode import mean_word
from neti.models.methods.elite.files import save_encoder
from neti.models.methods.neti.mapper import NormRule
from neti.training.coach.launch import launch
from neti.training.config.run import RunConfig
from neti.utils.config.parsing import parse_config
from neti.utils.errors import UserError

pytestmark = pytest.mark.e2e
TIMES = torch.tensor([0, 500, 999])


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def encoder(tiny_backbone: Backbone, tmp_path: Path) -> Path:
    frame = tiny_backbone.frame
    save_encoder(tiny_encoder(frame.layers, frame.text_width), tmp_path / "e.safetensors", base_model="tiny")
    return tmp_path / "e.safetensors"


@pytest.mark.parametrize("name", ["textual_inversion", "xti", "neti"])
@pytest.mark.parametrize("rule", list(NormRule))
def test_a_new_concept_is_the_encoded_word(tiny_backbone: Backbone, name: str, rule: NormRule) -> None:
    word = torch.randn(32, generator=torch.Generator().manual_seed(3)) * 0.7
    config = METHODS[name].config_class(**({"norm_rule": rule} if name == "neti" else {}))
    start = Start(word, torch.Generator().manual_seed(0), is_encoded=True)
    concept = METHODS[name].create(config, tiny_backbone.frame, start).eval()
    words = concept.vectors(TIMES).words
    assert torch.allclose(torch.cosine_similarity(words, word.expand_as(words), dim=-1), torch.ones(()), atol=1e-5)
    assert torch.allclose(words.norm(dim=-1), word.norm(), rtol=0.0 if name != "neti" else 0.3)
    if name == "neti":  # whatever nested dropout leaves of the mapper; and it has no place without an encoder
        cut = concept.vectors(TIMES, truncation=0).words
        assert torch.cosine_similarity(cut, word.expand_as(cut), dim=-1).min() > 0.9999
        plain = METHODS[name].create(config, tiny_backbone.frame, Start(word, torch.Generator().manual_seed(0)))
        assert torch.cosine_similarity(plain.vectors(TIMES).words, word.expand_as(words), dim=-1).max() < 0.9


@pytest.mark.parametrize("name", ["textual_inversion", "neti"])
def test_a_resumed_run_needs_no_encoder(tmp_path: Path, tiny_backbone_folder: Path, encoder: Path, name: str) -> None:
    write_images(tmp_path / "images")
    options = {"model__method": name, "model__start_from": "elite", "model__encoder": encoder}
    still = {"log__exp_name": "still", "optim__max_train_steps": 1, "optim__learning_rate": 1e-12}
    assert launch(make_config(tmp_path, tiny_backbone_folder, **options, **still)) == 0
    frame = Backbone.from_pretrained(str(tiny_backbone_folder), components=()).frame
    word = mean_word(sorted((tmp_path / "images").iterdir()), str(encoder), frame)
    if name == "textual_inversion":
        assert torch.allclose(tensors(tmp_path, 1, "still")["words"][0, 0], word, atol=1e-6)

    assert launch(make_config(tmp_path, tiny_backbone_folder, **options)) == 0
    for step in (4,):
        (tmp_path / f"runs/toy/checkpoints/step-{step}.pt").unlink()
    whole = tensors(tmp_path, 4)
    encoder.unlink()
    config = make_config(tmp_path, tiny_backbone_folder, **options)
    resumed = [*arguments(tmp_path, tiny_backbone_folder, **options), "--resume", "latest"]
    assert config.model.encoder is not None and launch(parse_config(RunConfig, resumed)) == 0
    assert_same_bits(tensors(tmp_path, 4), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model__start_from": "elite", "model__method": "perfusion"}, "perfusion starts at the super category"),
        ({"model__start_from": "elite", "model__mapper_checkpoint_path": "c.safetensors"}, "a run has one start"),
        ({"model__encoder": "e.safetensors"}, "belongs to model.start_from: elite"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_config(tmp_path, tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_an_encoder_of_another_model_is_one_line(tmp_path: Path, tiny_backbone_folder: Path, encoder: Path) -> None:
    write_images(tmp_path / "images")
    frame = Backbone.from_pretrained("miniature", components=()).frame
    save_encoder(tiny_encoder(frame.layers, frame.text_width), encoder, base_model="miniature")
    options = {"model__start_from": "elite", "model__encoder": encoder, "model__method": "textual_inversion"}
    with pytest.raises(UserError, match="made for another model") as caught:
        launch(make_config(tmp_path, tiny_backbone_folder, **options))
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()
