"""`scripts/compute_metrics.py` on a tiny random CLIP: numbers against a naive computation, files, and refusals."""

from __future__ import annotations

import csv
import importlib.util
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_judge import generate, photos, picture, recipe, save_clip, save_vit

from neti.models.judging.metric_model import CLIPMetricModel
from neti.utils.images.png import read_metadata, write_png

SCRIPT = Path(__file__).parents[2] / "scripts" / "compute_metrics.py"
PROMPTS = ("A photo of a {}", "{} on a beach")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line the user reads; loading bars may stand before it."""
        assert self.code == 2, self.err
        [line] = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.err.splitlines()[-1] == line, "something follows the error"
        return line


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def keys(tmp_path: Path, judge_folder: Path) -> dict[str, Any]:
    """Three photos, and two prompts x two truncations x three seeds of NeTI."""
    photos(tmp_path / "photos", range(100, 103))
    recipes = [recipe(prompt=p, truncation=t, seed=s) for p in PROMPTS for t in (None, 8) for s in range(3)]
    generate(tmp_path / "neti", recipes)
    return {
        "concepts": [f"toy | toy | {tmp_path / 'photos'}"],
        "runs": [f"NeTI | toy | {tmp_path / 'neti'}"],
        "judge": str(judge_folder),
        "output_dir": str(tmp_path / "metrics"),
        "cache_dir": str(tmp_path / "cache"),
        "device": "cpu",
        "bootstrap_samples": 200,
    }


@pytest.fixture
def run(tmp_path: Path, keys: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Run:
    spec = importlib.util.spec_from_file_location("metrics_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run_script(**changes: object) -> Result:
        path = tmp_path / "metrics.yaml"
        path.write_text(yaml.safe_dump({**keys, **changes}), encoding="utf-8")
        capsys.readouterr()
        code = script.main(["--config_path", str(path)])
        return Result(code, *capsys.readouterr())

    return run_script


def measured(result: Result, tmp_path: Path) -> dict[str, Any]:
    assert result.code == 0, result.err
    return json.loads((tmp_path / "metrics" / "metrics.json").read_text(encoding="utf-8"))


def row(record: dict[str, Any], method: str, **place: object) -> dict[str, Any]:
    wanted = {"concept": "toy", "truncation": None, "prompt": None, **place, "method": method}
    [found] = [row for row in record["rows"] if all(row[key] == value for key, value in wanted.items())]
    return found


def test_numbers_are_those_of_a_naive_computation(run: Run, tmp_path: Path, judge_folder: Path) -> None:
    record = measured(run(), tmp_path)
    model = CLIPMetricModel.from_pretrained(str(judge_folder))
    training = model.image_features([picture(k, 48, 40) for k in range(100, 103)]).double().numpy()
    texts = model.text_features(["A photo of a ", " on a beach"]).double().numpy()
    # pictures 0-2: first prompt, all units; 3-5: its 8 units; 6-8 and 9-11: the same of the second
    groups = [model.image_features([picture(k) for k in range(s, s + 3)]).double().numpy() for s in (0, 3, 6, 9)]
    for truncation, of_prompt in ((None, (0, 2)), (8, (1, 3))):
        pairs = [float(g @ t) for k in of_prompt for g in groups[k] for t in training]
        message = [float(g @ texts[n]) for n, k in enumerate(of_prompt) for g in groups[k]]
        spread = [
            1 - np.mean([g[i] @ g[j] for i in range(3) for j in range(i)]) for g in (groups[k] for k in of_prompt)
        ]
        total = row(record, "NeTI", truncation=truncation)
        assert total["images"] == 6
        assert total["image_similarity"]["mean"] == pytest.approx(np.mean(pairs), abs=1e-6)
        assert total["text_similarity"]["mean"] == pytest.approx(np.mean(message), abs=1e-6)
        assert total["diversity"]["mean"] == pytest.approx(np.mean(spread), abs=1e-6)
        for metric in ("image_similarity", "text_similarity"):
            assert total[metric]["low"] < total[metric]["mean"] < total[metric]["high"]
        for n, k in enumerate(of_prompt):
            one = row(record, "NeTI", truncation=truncation, prompt=PROMPTS[n])
            assert one["image_similarity"]["mean"] == pytest.approx((groups[k] @ training.T).mean(), abs=1e-6)
            assert one["text_similarity"]["mean"] == pytest.approx((groups[k] @ texts[n]).mean(), abs=1e-6)

    bound = row(record, "training images")
    assert bound["images"] == 3 and bound["kind"] == "bound"
    assert bound["image_similarity"]["mean"] == pytest.approx((training @ training.T).mean(), abs=1e-6)
    assert bound["text_similarity"]["mean"] == pytest.approx((training @ texts.T).mean(), abs=1e-6)


def test_replacing_the_placeholder_changes_the_text_alone(run: Run, tmp_path: Path, judge_folder: Path) -> None:
    removed = row(measured(run(), tmp_path), "NeTI", prompt=PROMPTS[1])
    record = measured(run(placeholder="replaced"), tmp_path)
    replaced = row(record, "NeTI", prompt=PROMPTS[1])
    model = CLIPMetricModel.from_pretrained(str(judge_folder))
    images = model.image_features([picture(k) for k in (6, 7, 8)])
    expected = float((images @ model.text_features(["toy on a beach"]).T).mean())
    assert replaced["text_similarity"]["mean"] == pytest.approx(expected, abs=1e-6)
    assert replaced["text_similarity"] != removed["text_similarity"]
    assert replaced["image_similarity"] == removed["image_similarity"]
    assert record["protocol"]["placeholder"] == "replaced"


def test_what_is_written_and_printed(run: Run, tmp_path: Path, judge_folder: Path) -> None:
    result = run()
    record = measured(result, tmp_path)
    assert {path.name for path in (tmp_path / "metrics").iterdir()} == {"metrics.json", "metrics.csv", "metrics.png"}
    protocol = record["protocol"]
    assert protocol["judge"] == str(judge_folder) and protocol["judge_digest"].startswith("sha256:")
    assert (protocol["pooling"], protocol["resizing"], protocol["placeholder"]) == ("projected", "pil", "removed")
    assert record["sources"]["generated"][0]["recipe"]["scheduler"] == "dpmsolver++"
    with open(tmp_path / "metrics" / "metrics.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(record["rows"]) == 2 * (1 + 2) + 1
    assert all(line["resizing"] == "pil" and line["judge_digest"] == protocol["judge_digest"] for line in lines)
    with Image.open(tmp_path / "metrics" / "metrics.png") as plot:
        assert plot.width > 1000 and "placeholder removed" in plot.info["Description"]
        colours = np.asarray(plot.convert("RGB")).reshape(-1, 3)
    assert (colours == (0, 114, 178)).all(axis=1).sum() > 200, "the method's line is drawn"
    table = [line for line in result.out.splitlines() if line.startswith(("NeTI", "training images"))]
    assert [line.split()[2] for line in table[:2]] == ["all", "8"]
    assert "placeholder removed" in result.out and str(tmp_path / "metrics" / "metrics.csv") in result.out


def test_a_second_call_gives_the_same_numbers_from_the_cache(run: Run, tmp_path: Path) -> None:
    first = measured(run(), tmp_path)
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(entries) == 15
    assert measured(run(batch_size=4), tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == entries


def test_methods_concepts_bounds_and_dino_together(run: Run, tmp_path: Path, keys: dict[str, Any]) -> None:
    photos(tmp_path / "cats", range(110, 114))
    both = [recipe(prompt=p, seed=s, concept="sha256:11") for p in PROMPTS for s in range(2)]
    plain = [recipe(prompt=p.replace("{}", "toy"), seed=s, concept="", placeholder="") for p in PROMPTS for s in (0, 1)]
    runs = [
        *keys["runs"],
        f"NeTI | cat | {generate(tmp_path / 'neti cat', both, 30)}",
        f"XTI | toy | {generate(tmp_path / 'xti', both[:2], 40)}",
        f"XTI | toy | {generate(tmp_path / 'xti more', both[2:], 42)}",
    ]
    result = run(
        concepts=[*keys["concepts"], f"cat | cat | {tmp_path / 'cats'}"],
        runs=runs,
        prompt_only=[f"toy | {generate(tmp_path / 'plain', plain, 50)}"],
        dino=str(save_vit(tmp_path / "vit")),
        print_prompts=True,
    )
    record = measured(result, tmp_path)
    over = row(record, "NeTI", concept=None)
    parts = [row(record, "NeTI", concept=name) for name in ("toy", "cat")]
    for metric in ("image_similarity", "text_similarity", "dino_similarity", "diversity"):
        assert over[metric]["mean"] == pytest.approx(np.mean([part[metric]["mean"] for part in parts]))
    assert (over["concepts"], over["images"]) == (2, 10)
    assert not [r for r in record["rows"] if r["concept"] is None and r["truncation"] == 8]
    assert "NeTI, toy, 8 units: no images of cat" in result.out
    assert row(record, "XTI")["images"] == 4, "two folders of one method and concept are one set"
    bound = row(record, "prompt only", prompt=PROMPTS[1])
    assert bound["images"] == 2 and bound["kind"] == "bound", "the word in its prompt is the methods' {}"
    assert row(record, "training images", concept=None)["concepts"] == 2
    assert record["protocol"]["dino_pooling"] == "cls"


def test_withheld_images_are_left_out_and_told(run: Run, tmp_path: Path) -> None:
    generate(tmp_path / "neti", [recipe(seed=7)], 60, withheld_by="safety checker")
    result = run()
    assert row(measured(result, tmp_path), "NeTI")["images"] == 6
    assert "note: NeTI, toy: 1 images that the safety checker withheld are left out" in result.out


def refused(result: Result, tmp_path: Path) -> str:
    assert not (tmp_path / "metrics").exists(), "nothing is written"
    return result.error


def test_missing_and_empty_folders(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "nowhere does not exist" in refused(run(runs=[f"NeTI | toy | {tmp_path / 'nowhere'}"]), tmp_path)
    assert "nowhere does not exist" in refused(run(concepts=[f"toy | toy | {tmp_path / 'nowhere'}"]), tmp_path)
    assert "no generated images" in refused(run(runs=[f"NeTI | toy | {tmp_path / 'empty'}"]), tmp_path)
    assert "holds no image" in refused(run(concepts=[f"toy | toy | {tmp_path / 'empty'}"]), tmp_path)


def test_images_without_a_recipe(run: Run, tmp_path: Path) -> None:
    foreign = tmp_path / "neti" / PROMPTS[0] / "9.png"
    picture(0).save(foreign)
    assert f"{foreign} carries no recipe" in refused(run(), tmp_path)
    write_png(picture(0), foreign, {"recipe": {"prompt": 3}})
    assert f"{foreign}: its recipe is damaged or was edited" in refused(run(), tmp_path)


def foreign(folder: Path, first: int, **formats: str) -> Path:
    """Six pictures as any tool may write them, a folder for each prompt, in the given formats."""
    for number, prompt in enumerate(PROMPTS):
        (folder / prompt).mkdir(parents=True)
        for seed, kind in enumerate(formats.get("kinds", "png jpg webp").split()):
            settings = {"lossless": True} if kind == "webp" else {"quality": 100, "subsampling": 0}
            picture(first + 3 * number + seed).save(folder / prompt / f"{seed}.{kind}", **settings)
    return folder


def test_images_of_other_tools_are_measured_by_the_names_of_their_folders(run: Run, tmp_path: Path) -> None:
    """Pictures 0-2 and 6-8 of NeTI, once more as PNG, JPEG and WebP without any recipe."""
    ours = measured(run(), tmp_path)
    folder = foreign(tmp_path / "theirs", 0)
    for seed in range(3):
        (folder / PROMPTS[1] / f"{seed}.{('png', 'jpg', 'webp')[seed]}").unlink()
        picture(6 + seed).save(folder / PROMPTS[1] / f"{seed}.png")
    (folder / PROMPTS[0] / "grid.jpg").write_bytes((folder / PROMPTS[0] / "1.jpg").read_bytes())
    result = run(runs=[f"theirs | toy | {folder}"])
    theirs = measured(result, tmp_path)
    for prompt in (None, *PROMPTS):
        one, other = row(ours, "NeTI", prompt=prompt), row(theirs, "theirs", prompt=prompt)
        assert one["images"] == other["images"]
        for metric in ("image_similarity", "text_similarity"):
            assert one[metric]["mean"] == pytest.approx(other[metric]["mean"], abs=0.01), "JPEG loses a little"
    assert "note: theirs, toy: 1 grids are left out, such as grid.jpg" in result.out
    assert "images of another tool; the prompt of " in result.out


def test_a_placeholder_in_a_folders_name_and_a_truncation_in_a_files(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "theirs" / "A photo of a <my-toy>"
    folder.mkdir(parents=True)
    for name in ("0", "0_truncation_8", "some name"):
        picture(len(name)).save(folder / f"{name}.png")
    record = measured(run(runs=[f"theirs | toy | {tmp_path / 'theirs'}"]), tmp_path)
    assert row(record, "theirs", prompt=PROMPTS[0])["images"] == 2
    assert row(record, "theirs", prompt=PROMPTS[0], truncation=8)["images"] == 1


def test_prompts_from_a_file(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for number in range(3):
        picture(number).save(folder / f"{number:03}.png")
    unknown = refused(run(runs=[f"theirs | toy | {folder}"]), tmp_path)
    assert "000.png: its prompt is not known; write it into" in unknown and "file_name,prompt" in unknown
    lines = ["file_name,prompt", "000.png,A photo of a {}", '001.png,"{}, on a beach"', "002.png,A photo of a <x>"]
    (folder / "prompts.csv").write_text("\n".join(lines))
    record = measured(run(runs=[f"theirs | toy | {folder}"]), tmp_path)
    assert row(record, "theirs", prompt="A photo of a {}")["images"] == 2
    assert row(record, "theirs", prompt="{}, on a beach")["images"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file_name,prompt\n000.png,\n", "line 2: needs the columns file_name,prompt, both filled"),
        ("a,b\n000.png,{}\n", "line 2: needs the columns file_name,prompt"),
        ("file_name,prompt\nnobody.png,{}\n", "line 2: there is no file 'nobody.png'"),
        (b"file_name,prompt\n000.png,\xff\n", "cannot be read"),
    ],
)
def test_a_prompts_file_that_is_not_as_it_should_be(run: Run, tmp_path: Path, text: str | bytes, expected: str) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    picture(0).save(folder / "000.png")
    (folder / "prompts.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert expected in refused(run(runs=[f"theirs | toy | {folder}"]), tmp_path)


def test_a_recipe_beside_an_image_counts_when_the_image_lost_its_own(run: Run, tmp_path: Path) -> None:
    ours = measured(run(), tmp_path)
    for path in sorted((tmp_path / "neti").rglob("[0-9]*.png")):
        with Image.open(path) as image:
            image.convert("RGB").save(path.with_suffix(".webp"), lossless=True)
        path.unlink()
    for number, folder in enumerate(sorted((tmp_path / "neti").iterdir())):
        folder.rename(folder.with_name(str(number)))
    assert measured(run(), tmp_path)["rows"] == ours["rows"]


def test_a_picture_that_would_fill_the_memory_is_named(run: Run, tmp_path: Path) -> None:
    """A PNG of a few bytes that says it has 30000 x 30000 pixels, under the name of a generated image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    folder = tmp_path / "theirs" / "A photo of {}"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(bomb)
    error = run(runs=[f"theirs | toy | {tmp_path / 'theirs'}"]).error
    assert "0.png has more than" in error and "million pixels" in error


def test_references_and_identity(run: Run, tmp_path: Path, keys: dict[str, Any], judge_folder: Path) -> None:
    """Other pictures of a concept are a second likeness, and they decide whose images the images are."""
    for folder, seeds in {"fresh": (0, 1, 2), "cats": (0, 1, 2, 101)}.items():  # 0 to 2: NeTI's first prompt
        (tmp_path / folder).mkdir()
        for seed in seeds:
            picture(seed).save(tmp_path / folder / f"{seed}.png")
    concepts = [*keys["concepts"], f"cat | cat | {tmp_path / 'cats'}"]
    alone = row(measured(run(), tmp_path), "NeTI", prompt=PROMPTS[0])
    assert "reference_similarity" not in alone and "identity_share" not in alone
    by_photos = row(measured(run(concepts=concepts), tmp_path), "NeTI", prompt=PROMPTS[0])
    assert by_photos["identity_share"]["mean"] == pytest.approx(1 / 3)
    record = measured(run(concepts=concepts, references=[f"toy | {tmp_path / 'fresh'}"]), tmp_path)
    one = row(record, "NeTI", prompt=PROMPTS[0])
    model = CLIPMetricModel.from_pretrained(str(judge_folder))
    shown = model.image_features([picture(k) for k in range(3)]).double()
    assert one["reference_similarity"]["mean"] == pytest.approx((shown @ shown.T).mean().item(), abs=1e-6)
    assert one["identity_share"]["mean"] == 1
    assert one["image_similarity"] == alone["image_similarity"]


@pytest.mark.parametrize("beside", [True, False])
def test_masked_photos(run: Run, tmp_path: Path, keys: dict[str, Any], judge_folder: Path, beside: bool) -> None:
    """Masks that hide the right half, beside the photos or in a folder of their own."""
    folder = tmp_path / "photos" if beside else tmp_path / "masks"
    folder.mkdir(exist_ok=True)
    mask = Image.new("L", (48, 40))
    mask.paste(255, (0, 0, 24, 40))
    cut = []
    for k in range(100, 103):
        mask.save(folder / (f"{k}-masklabel.png" if beside else f"{k}.png"))
        cut.append(Image.composite(picture(k, 48, 40), Image.new("RGB", (48, 40), (128,) * 3), mask))
    missing = run(masks=[f"toy | {tmp_path}"])
    assert missing.code == 2 and "100.png has no mask" in missing.err
    record = measured(run(masks=[f"toy | {folder}"]), tmp_path)
    model = CLIPMetricModel.from_pretrained(str(judge_folder))
    shown, photos = model.image_features([picture(k) for k in range(3)]), model.image_features(cut)
    one = row(record, "NeTI", prompt=PROMPTS[0])
    assert one["masked_similarity"]["mean"] == pytest.approx((shown @ photos.T).mean().item(), abs=1e-6)
    assert one["masked_similarity"] != one["image_similarity"]
    assert len(record["sources"]["concepts"][0]["images"]) == 3, "a mask is no photo"


@pytest.mark.parametrize("name", ["metrics.json", "metrics.csv", "metrics.png"])
def test_files_of_others_are_never_replaced(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "metrics").mkdir()
    path = tmp_path / "metrics" / name
    path.write_text('{"mine": 1}') if name != "metrics.png" else picture(0).save(path)
    before = path.read_bytes()
    assert f"{path} was not written by this script" in run().error
    assert path.read_bytes() == before and len(list((tmp_path / "metrics").iterdir())) == 1
    path.unlink()
    assert run().code == run().code == 0, "its own files are replaced"


def test_a_folder_that_mixes_concepts_or_ways_of_generating(run: Run, tmp_path: Path) -> None:
    folder = generate(tmp_path / "neti", [recipe(seed=8, concept="sha256:99", steps=30)])
    error = refused(run(), tmp_path)
    assert "concept 'sha256:99' there, 'sha256:00' here" in error or "concept 'sha256:00' there" in error
    generate(folder, [recipe(seed=8, steps=30)])
    assert "steps 30 there, 50 here" in refused(run(), tmp_path)


def test_an_image_counts_once(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "neti" / PROMPTS[0] / "0.png"
    write_png(picture(0), source.with_name("copy.png"), read_metadata(source) or {})
    assert "an image counts once" in refused(run(), tmp_path)


def test_images_of_a_plain_word_are_the_prompt_only_bound(run: Run, tmp_path: Path) -> None:
    word = {"concept": "", "placeholder": "", "word": "toy"}
    recipes = [recipe(prompt=prompt, seed=seed, **word) for prompt in PROMPTS for seed in range(2)]
    folder = generate(tmp_path / "word", recipes, 50)
    bound = row(measured(run(prompt_only=[f"toy | {folder}"]), tmp_path), "prompt only")
    assert bound["images"] == 4 and bound["kind"] == "bound"
    other = generate(tmp_path / "other", [recipe(**{**word, "word": "cat"})], 60)
    assert "made with the word 'cat', but concepts says 'toy'" in run(prompt_only=[f"toy | {other}"]).error


def test_images_of_several_concepts_are_refused(run: Run, tmp_path: Path) -> None:
    folder = generate(tmp_path / "both", [recipe(prompt="{mug} and {cat}", concepts={"mug": "sha256:0"})], 50)
    assert "named concepts ('{mug} and {cat}')" in refused(run(runs=[f"NeTI | toy | {folder}"]), tmp_path)


def test_a_prompt_only_image_of_a_prompt_that_no_run_has(run: Run, tmp_path: Path) -> None:
    folder = generate(tmp_path / "plain", [recipe(prompt="A statue of toy", placeholder="")])
    assert "no run of toy has the prompt 'A statue of toy'" in refused(run(prompt_only=[f"toy | {folder}"]), tmp_path)


def test_unknown_judges(run: Run, tmp_path: Path) -> None:
    assert "judge './nowhere': no such folder" in refused(run(judge="./nowhere"), tmp_path)
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refused(run(judge=str(tmp_path / "empty")), tmp_path)
    assert "could not be fetched" in refused(run(judge="neti-tests/no-such-model"), tmp_path)


def test_from_the_command_line(tmp_path: Path, keys: dict[str, Any]) -> None:
    arguments = [f"--{key}={json.dumps(value) if isinstance(value, list) else value}" for key, value in keys.items()]
    command = [sys.executable, str(SCRIPT), *arguments, "--resizing", "tensor"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "metrics" / "metrics.json").read_text())["protocol"]["resizing"] == "tensor"
