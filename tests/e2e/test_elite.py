"""ELITE on the miniature by its commands: a picture becomes a concept, which draws; official files; every refusal."""

from __future__ import annotations

import runpy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_elite import tiny_encoder

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.frame import Frame
from neti.models.concepts.concept import Concept
from neti.models.judging.metric_model import CLIPMetricModel
from neti.models.methods.elite.encode import mean_word
from neti.models.methods.elite.files import BUNDLED, load_encoder, save_encoder

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
PHOTO, MASK = (ROOT / "input_configs" / folder / "taxi" / "0.png" for folder in ("concepts", "concepts_masks"))
Script = Callable[..., "tuple[int, str]"]


@pytest.fixture(scope="module")
def frame() -> Frame:
    return Backbone.from_pretrained("miniature", components=()).frame


@pytest.fixture
def encoder(frame, tmp_path) -> Path:
    """A tiny random encoder for the miniature."""
    save_encoder(tiny_encoder(frame.layers, frame.text_width), tmp_path / "e.safetensors", base_model="miniature")
    return tmp_path / "e.safetensors"


@pytest.fixture
def script(capsys) -> Script:
    """A script's `main` by the script's name and options: its exit code, and what it printed or its one line."""

    def run(name: str, **options: object) -> tuple[int, str]:
        main = runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"]
        capsys.readouterr()
        code = main([f"--{key}={value}" for key, value in options.items()]) or 0
        out, err = capsys.readouterr()
        if code:
            [err] = [line for line in err.splitlines() if line]
        return code, err if code else out

    return run


def drawing(folder: Path) -> dict[str, object]:
    """Options of `scripts/inference.py` for two small pictures."""
    return {
        "prompts": '["A photo of a {}"]',
        "seeds": "0-1",
        "num_denoising_steps": 2,
        "torch_dtype": "fp32",
        "device": "cpu",
        "inference_dir": folder,
    }


def pictures(folder: Path) -> np.ndarray:
    files = sorted(folder.rglob("[01].png"))
    assert len(files) == 2
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_a_picture_drawn_at_once_is_the_concept_file_drawn(script, encoder, tmp_path):
    output = tmp_path / "taxi.safetensors"
    code, out = script("encode", image=PHOTO, mask=MASK, encoder=encoder, output=output, super_category="car")
    assert code == 0 and "1 words and 16 patches" in out
    concept = Concept.load(output)
    assert (concept.placeholder, concept.super_category) == ("<0>", "car")
    assert script("inference", concept=output, **drawing(tmp_path / "file"))[0] == 0
    assert script("inference", image=PHOTO, mask=MASK, encoder=encoder, **drawing(tmp_path / "at_once"))[0] == 0
    assert np.array_equal(pictures(tmp_path / "file"), pictures(tmp_path / "at_once"))
    weaker = {**drawing(tmp_path / "weaker"), "strength": 0}
    assert script("inference", image=PHOTO, mask=MASK, encoder=encoder, **weaker)[0] == 0
    assert not np.array_equal(pictures(tmp_path / "file"), pictures(tmp_path / "weaker"))
    steps = drawing(tmp_path / "several")
    assert script("inference", concept=output, settings="{strength: [0, 0.8]}", **steps)[0] == 0
    lost = tmp_path / "elsewhere" / "taxi.safetensors"
    lost.parent.mkdir()
    output.rename(lost)
    code, line = script("inference", concept=lost, **drawing(tmp_path / "lost"))
    assert code == 2 and "say where it is by --encoder" in line and not (tmp_path / "lost").exists()
    assert script("inference", concept=lost, encoder=encoder, **drawing(tmp_path / "lost"))[0] == 0
    several = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "several").rglob("[01]*.png"))]
    assert len(several) == 4


def test_the_bundled_encoder_tells_things_apart(script, frame, tmp_path):
    """Two photos of each held-out concept: the nearest word of another photo is that of the same thing."""
    assert BUNDLED["miniature"].stat().st_size < 8_000_000
    code, out = script("encode", image=PHOTO, output=tmp_path / "taxi.safetensors")
    assert code == 0 and "words alone" in out
    code, line = script("encode", image=PHOTO, mask=MASK, output=tmp_path / "masked.safetensors")
    assert code == 2 and "has no local mapper" in line

    assert script("inference", image=PHOTO, **drawing(tmp_path / "images"))[0] == 0
    assert pictures(tmp_path / "images").std() > 5

    photos = sorted(path for path in PHOTO.parents[1].glob("*/[01].png"))
    words = torch.cat([mean_word([photo], "miniature", frame)[None] for photo in photos])
    likeness = torch.nn.functional.normalize(words - words.mean(0), dim=1)
    likeness = (likeness @ likeness.T).fill_diagonal_(-1)
    nearest = likeness.argmax(1).tolist()
    own = sum(photos[i].parent == photos[k].parent for i, k in enumerate(nearest))
    assert len(photos) == 20 and own >= 14  # by chance: one


def test_the_bundled_encoder_sees_by_a_tower_of_its_own(frame):
    tower = load_encoder("miniature", frame).vision.tower.state_dict()
    judge = CLIPMetricModel.from_pretrained("miniature-judge").model.vision_model.state_dict()
    for name, weight in judge.items():
        for own in tower.values():
            assert (
                own.shape != weight.shape or not torch.allclose(own, weight.float(), atol=1e-3) or own.std() < 1e-2
            ), name


def test_the_word_to_keep_is_one_or_all(script, encoder, tmp_path):
    for word, positions in ((1, 1), ("null", 5)):
        output = tmp_path / f"{word}.safetensors"
        assert script("encode", image=PHOTO, encoder=encoder, output=output, word=word)[0] == 0
        assert Concept.load(output).method.positions == positions
        assert script("inference", concept=output, **drawing(tmp_path / f"of_{word}"))[0] == 0


def test_official_files_serve_as_they_are_and_as_one_file(script, frame, tmp_path):
    tiny, official = tiny_encoder(frame.layers, frame.text_width), tmp_path / "official"
    official.mkdir()
    tiny.vision.tower.save_pretrained(tmp_path / "tower")
    files = {role: official / f"{role}_mapper.pt" for role in ("global", "local")}
    torch.save(OrderedDict(tiny.of_words.state_dict()), files["global"])
    torch.save(OrderedDict(tiny.of_patches.state_dict()), files["local"])
    one = tmp_path / "one.safetensors"
    given = {f"{role}_mapper": file for role, file in files.items()}
    known = {"base_model": "miniature", "vision": tmp_path / "tower"}
    assert script("convert_elite", output=one, dtype="fp32", **known, **given)[0] == 0
    from_folder = {"pretrained_model_name_or_path": "miniature", "vision": tmp_path / "tower"}
    words = []
    for encoder, options in ((official, from_folder), (one, {})):
        output = tmp_path / f"by_{encoder.stem}.safetensors"
        assert script("encode", image=PHOTO, mask=MASK, encoder=encoder, output=output, **options)[0] == 0
        words.append(Concept.load(output).method)
    assert torch.equal(words[0].words, words[1].words) and torch.equal(words[0].patches, words[1].patches)

    code, line = script("convert_elite", output=one, **known, **given)
    assert code == 2 and "must be a new file" in line
    swapped = {"global_mapper": files["local"], "local_mapper": files["global"]}
    code, line = script("convert_elite", output=tmp_path / "two.safetensors", **known, **swapped)
    assert code == 2 and "the two have been swapped" in line
    assert not (tmp_path / "two.safetensors").exists()


REFUSALS = {
    "another size": (Image.new("L", (60, 64), 0), {}, "has 60 x 64 pixels, the image 64 x 64"),
    "empty": (Image.new("L", (64, 64), 0), {}, "is empty"),
    "everything": (Image.new("L", (64, 64), 255), {}, "covers everything"),
    "several channels": (Image.new("RGB", (64, 64), (255, 0, 0)), {}, "several channels that differ"),
    "none, with patches": (None, {"patches": "true"}, "needs to know where the object is"),
    "the strength of nothing": (None, {"strength": 0.5}, "strength = 0.5 is that of the patches, and none are read"),
    "no such encoder": (None, {"encoder": "nothing.safetensors"}, "no such file"),
    "no such picture": (None, {"image": "nothing.png"}, "nothing.png"),
    "no such word": (None, {"word": 5}, "must be at least 0 and at most 4"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_encoded_is_one_line(script, encoder, tmp_path, case):
    mask, options, message = REFUSALS[case]
    output = tmp_path / "out.safetensors"
    if mask is not None:
        mask.save(tmp_path / "mask.png")
        options = {**options, "mask": tmp_path / "mask.png"}
    common = {"image": PHOTO, "encoder": encoder, **options}
    code, line = script("encode", output=output, **common)
    assert code == 2 and message in line and not output.exists()
    if not options.keys() & {"word", "patches"}:  # keys of encode.py alone
        code, line = script("inference", **common, **drawing(tmp_path / "images"))
        assert code == 2 and message in line and not (tmp_path / "images").exists()
