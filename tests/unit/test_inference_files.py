"""Finding concept files, writing images atomically, comparing recipes, laying out the gallery; no model is involved."""

from __future__ import annotations

import errno
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

import pytest
from PIL import Image

from neti.models.concepts.files import ConceptFiles, chosen_files, explicit_files, files_at, find_files
from neti.models.generation.gallery import Gallery
from neti.models.generation.recipes import ImageRecipe
from neti.utils.errors import UserError
from neti.utils.files import write_atomically
from neti.utils.hashing import file_hash
from neti.utils.images.png import read_metadata, write_png

RECIPE = ImageRecipe(
    prompt="A photo of a {}",
    negative_prompt="",
    seed=0,
    truncation=None,
    steps=50,
    guidance_scale=7.5,
    scheduler="dpmsolver++",
    base_model="some/model",
    base_revision=None,
    concept="sha256:0",
    placeholder="<toy>",
    torch_dtype="fp32",
    safety_checker=False,
)


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())


def test_the_highest_iteration_counts_as_a_number(tmp_path: Path) -> None:
    touch(tmp_path, "concept-steps-250.safetensors", "concept-steps-1000.safetensors", "notes.txt")
    assert find_files(tmp_path) == ConceptFiles(tmp_path / "concept-steps-1000.safetensors", None, 1000)
    assert find_files(tmp_path, 250).concept.name == "concept-steps-250.safetensors"


def test_runs_of_the_public_code(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoints"
    touch(saved, "mapper-steps-500.pt", "learned_embeds-steps-500.bin", "mapper-steps-750.pt")
    files = find_files(tmp_path)  # 750 has no embeddings: an interrupted save
    assert files == ConceptFiles(saved / "mapper-steps-500.pt", saved / "learned_embeds-steps-500.bin", 500)
    touch(tmp_path, "concept-steps-500.safetensors")
    assert find_files(tmp_path).paths == [tmp_path / "concept-steps-500.safetensors"]


def test_concepts_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"concept-steps-N\.safetensors"):
        find_files(tmp_path)
    touch(tmp_path, "concept-steps-5.safetensors", "concept-steps-20.safetensors", "mapper.pt")
    with pytest.raises(UserError, match="iterations 5, 20"):
        find_files(tmp_path, 7)
    with pytest.raises(UserError, match="learned_embeds_path"):
        explicit_files(tmp_path / "mapper.pt", None)
    with pytest.raises(UserError, match=r"gone\.bin"):
        explicit_files(tmp_path / "mapper.pt", tmp_path / "gone.bin")


def test_one_half_of_a_pair_is_enough_beside_a_run_folder(tmp_path: Path) -> None:
    """The public code takes the path that is given, and the other one from input_dir."""
    run, saved = tmp_path / "run", tmp_path / "run" / "checkpoints"
    touch(run)
    touch(saved, "mapper-steps-500.pt", "mapper-steps-750.pt", "learned_embeds-steps-500.bin")
    touch(tmp_path, "other.pt", "other.bin", "ours.safetensors")
    mapper, embeds = tmp_path / "other.pt", tmp_path / "other.bin"
    assert chosen_files(run, None, mapper, None).paths == [mapper, saved / "learned_embeds-steps-500.bin"]
    assert chosen_files(run, None, None, embeds).paths == [saved / "mapper-steps-750.pt", embeds]
    assert chosen_files(run, 500, None, embeds).paths == [saved / "mapper-steps-500.pt", embeds]
    assert chosen_files(run, None, mapper, embeds).paths == chosen_files(None, None, mapper, embeds).paths
    assert chosen_files(run, None, tmp_path / "ours.safetensors", None).paths == [tmp_path / "ours.safetensors"]
    assert chosen_files(run, None, None, None).iteration == 500
    with pytest.raises(UserError, match=r"run holds no learned_embeds-steps-7; name it too"):
        chosen_files(run, 7, mapper, None)
    with pytest.raises(UserError, match="needs its mapper"):
        chosen_files(None, None, None, embeds)


@pytest.mark.parametrize("place", ["x" * 300, "a\0b", "file", "gone"])
def test_a_place_that_no_folder_can_be_is_one_line(tmp_path: Path, place: str) -> None:
    touch(tmp_path, "file")
    for find in (find_files, files_at):
        with pytest.raises(UserError) as caught:
            find(tmp_path / place)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_place_says_what_concept_it_is(tmp_path: Path) -> None:
    touch(tmp_path, "toy.safetensors", "concept-steps-5.safetensors", "mapper-steps-7.pt", "mapper.pt")
    assert files_at(tmp_path / "toy.safetensors").paths == [tmp_path / "toy.safetensors"]
    assert files_at(tmp_path).iteration == 5
    with pytest.raises(UserError, match=r"needs learned_embeds-steps-7\.bin beside it"):
        files_at(tmp_path / "mapper-steps-7.pt")
    touch(tmp_path, "learned_embeds-steps-7.bin")
    names = [path.name for path in files_at(tmp_path / "mapper-steps-7.pt").paths]
    assert names == ["mapper-steps-7.pt", "learned_embeds-steps-7.bin"]
    for wrong in ("gone.safetensors", "mapper.pt"):
        with pytest.raises(UserError, match=wrong):
            files_at(tmp_path / wrong)


def test_the_content_hash_follows_content_not_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"same")
    (tmp_path / "b").write_bytes(b"same")
    (tmp_path / "c").write_bytes(b"other")
    assert file_hash(tmp_path / "a") == file_hash(tmp_path / "b") != file_hash(tmp_path / "c")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"old")

    def fill_the_disk(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"image\.png: No space left on device"):
        write_atomically(path, fill_the_disk)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_writing_below_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "file" / "image.png", lambda file: file.write(b""))


def test_metadata_survives_in_the_png(tmp_path: Path) -> None:
    metadata = {"prompt": "ein Bär ☃ 🙂", "numbers": [1, 2.5, None]}
    write_png(Image.new("RGB", (2, 2)), tmp_path / "a.png", metadata)
    assert read_metadata(tmp_path / "a.png") == metadata
    Image.new("RGB", (2, 2)).save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert read_metadata(tmp_path / "plain.png") is read_metadata(tmp_path / "broken.png") is None


def test_recipes_tell_how_they_differ() -> None:
    assert RECIPE.differences(asdict(RECIPE)) == ""
    assert RECIPE.differences(asdict(replace(RECIPE, steps=20))) == "steps 20 there, 50 now"
    many = asdict(replace(RECIPE, steps=20, scheduler="ddim", torch_dtype="fp16", guidance_scale=1.0))
    assert RECIPE.differences(many).endswith("; 1 more")
    assert RECIPE.differences({**asdict(RECIPE), "added_later": 1})
    assert RECIPE.differences(None)


def test_a_recipe_of_an_earlier_version_is_still_the_same() -> None:
    """It lacks the entries that came later, and none of them meant anything to it."""
    older = {key: value for key, value in asdict(RECIPE).items() if key not in ("concepts", "word")}
    assert RECIPE.differences(older) == ""
    assert "word None there, 'cat' now" in replace(RECIPE, word="cat").differences(older)


def test_a_recipe_knows_what_the_model_is_given() -> None:
    assert replace(RECIPE, prompt="{} and <toy>", negative_prompt="<toy>").parsed.text == "{} and {}"
    assert replace(RECIPE, negative_prompt="a <toy>").parsed_negative.names == ("{}",)
    assert replace(RECIPE, prompt="{} and {}", word="cat", placeholder="").parsed.text == "cat and cat"
    assert replace(RECIPE, prompt="{mug} in {}", placeholder="").parsed.names == ("mug", "{}")


def test_records_of_earlier_versions_still_say_the_same() -> None:
    """They called the concepts "voices", and an entry that a record does not have counts as its default."""
    recipe = replace(RECIPE, concepts={"mug": "sha256:1"})
    record = asdict(recipe)
    record["voices"] = record.pop("concepts")
    del record["word"]
    assert recipe.differences(record) == ""
    assert "concepts" in recipe.differences({**record, "voices": None})


def test_columns_stand_side_by_side(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    columns = {
        label: [replace(RECIPE, prompt=f"a {label}", seed=seed, truncation=t) for t in (None, 4) for seed in range(18)]
        for label in ("geometry", "start 600")
    }
    for recipes in columns.values():
        fill_gallery(gallery, recipes)
    gallery.write_columns("style_mixing", "a {}", columns)
    for name, truncation in (("style_mixing.png", None), ("style_mixing_truncation_4.png", 4)):
        record = read_metadata(gallery.folder("a {}") / name) or {}
        shown = [[(image["prompt"], image["seed"], image["truncation"]) for image in row] for row in record["images"]]
        assert shown == [[(f"a {label}", seed, truncation) for label in columns] for seed in range(16)]


def fill_gallery(gallery: Gallery, recipes: list[ImageRecipe], size: int = 16) -> None:
    for recipe in recipes:
        colour = (recipe.seed * 7 % 256, 60 if recipe.truncation is None else 200, 128)
        gallery.add(Image.new("RGB", (size, size), colour), recipe, {"made_with": "a test"})


def test_the_gallery_knows_what_is_unfinished(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    recipes = [replace(RECIPE, seed=seed, truncation=truncation) for truncation in (None, 4) for seed in range(3)]
    assert gallery.unfinished(recipes) == recipes
    fill_gallery(gallery, recipes[1:4])
    assert gallery.unfinished(recipes) == [recipes[0], recipes[4], recipes[5]]
    changed = [replace(recipe, concept="sha256:1") for recipe in recipes]
    with pytest.raises(UserError, match=r"1\.png, and 2 more were made from another recipe \(concept 'sha256:0'"):
        gallery.unfinished(changed)


def test_a_place_that_cannot_take_images_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / RECIPE.prompt).touch()
    Gallery(tmp_path / "new" / "deep").require_writable()
    for place in ("file", "file/below", "nowhere", "x" * 300):
        gallery = Gallery(tmp_path / place)
        assert gallery.unfinished([RECIPE]) == [RECIPE]
        with pytest.raises(UserError, match="cannot write to inference_dir"):
            gallery.require_writable()
    with pytest.raises(UserError, match="is in the place of a folder of images"):
        Gallery(tmp_path / "taken").unfinished([RECIPE])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "nowhere", "taken"], "nothing is made"


def test_prompts_that_differ_get_folders_that_differ(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    prompts = ["a {}", "a/{}", "a\\{}", "../{}", "..", "{}." * 200, "{}." * 201, "CON", "ein {} ☃"]
    folders = {gallery.folder(prompt) for prompt in prompts}
    assert len(folders) == len(prompts)
    assert all(folder.parent == tmp_path and folder.name not in (".", "..") for folder in folders)


@pytest.mark.parametrize("count", [1, 8, 9, 70])
def test_a_grid_shows_every_seed(tmp_path: Path, count: int) -> None:
    gallery = Gallery(tmp_path)
    recipes = [replace(RECIPE, seed=seed) for seed in range(count)]
    fill_gallery(gallery, recipes)
    gallery.write_grids(recipes)
    with Image.open(gallery.folder(RECIPE.prompt) / "grid.png") as grid:
        colours = {colour for _, colour in grid.getcolors(maxcolors=2**20) or []}
    assert {(seed * 7 % 256, 60, 128) for seed in range(count)} <= colours


def test_a_grid_of_many_images_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neti.models.generation.gallery.GRID_PIXELS", 9 * 32 * 32)
    gallery = Gallery(tmp_path)
    recipes = [replace(RECIPE, seed=seed) for seed in range(9)]
    fill_gallery(gallery, recipes, size=200)
    gallery.write_grids(recipes)
    with Image.open(gallery.folder(RECIPE.prompt) / "grid.png") as grid:
        assert grid.width < 8 * 48 + 300


def test_the_slider_grid_has_a_row_per_truncation(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    recipes = [replace(RECIPE, seed=seed, truncation=t) for t in (None, 4, 2) for seed in range(20)]
    fill_gallery(gallery, recipes)
    gallery.write_grids(recipes)
    record = read_metadata(gallery.folder(RECIPE.prompt) / "truncations.png") or {}
    rows = [[(image["seed"], image["truncation"]) for image in row] for row in record["images"]]
    assert rows == [[(seed, t) for seed in range(16)] for t in (None, 4, 2)]
