"""The held-out concepts as folders of photos: all that the toolkit is ever shown of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ....utils.config.yaml_text import load_yaml
from ....utils.errors import UserError
from .objects import CONCEPTS, ONE_PLACE
from .world import World, concept_scenes, style_scenes

INDEX = "concepts.yaml"
PHOTOS = 5
REFERENCES, FIRST_REFERENCE = 10, 1000  # far beyond the photos in the endless series of a concept's photos
HEADER = "# The held-out concepts: folder -> super category, the word that data.super_category_token takes\n"

README = """# Held-out concepts of the miniature

{count} things that the bundled miniature Stable Diffusion has never seen; it knows only the words for their super
categories. All pictures are {pixels} x {pixels} pixels:

| in `input_configs/` | each concept's folder holds |
|---|---|
| `{name}/` | {photos} photos on different grounds, most of them plain |
| `{name}_one_place/` | {photos} photos in one place, as people take them: what is the concept, and what its place? |
| `{name}_masks/` | where the concept is on these photos: one set, for it stands in both as it does in the other |
| `{name}_references/` | {references} further photos on plain ground, to measure what was learned, never to learn from |

| folder | super category | its one place |
|---|---|---|
{rows}

`{index}` lists folders and super categories for programs. Learn a concept, and learn one from photos of one place with
masks:

```bash
python scripts/train.py --config_path input_configs/train_miniature.yaml --log.exp_name {example} \\
  --data.train_data_dir input_configs/{name}/{example} --data.super_category_token {example_category} \\
  --data.placeholder_token "<{example}>"

python scripts/train.py --config_path input_configs/train_miniature.yaml --log.exp_name {example}_masked \\
  --data.train_data_dir input_configs/{name}_one_place/{example} --data.super_category_token {example_category} \\
  --data.placeholder_token "<{example}>" \\
  --data.masks folder --data.masks_dir input_configs/{name}_masks/{example}
```

The pictures are rendered by `scripts/make_concepts.py` from glyphs of Noto Color Emoji (Google; SIL Open Font License
1.1). The glyphs stand in `CONCEPTS` in `training/miniature/world/objects.py`, and a test holds that pretraining has
none of them.
"""


@dataclass(frozen=True)
class ConceptPhotos:
    """One held-out concept on disk: its folder's name is its name."""

    name: str
    super_category: str
    folder: Path

    @property
    def paths(self) -> list[Path]:
        """Its photos, in order."""
        return sorted(self.folder.glob("*.png"))

    def photos(self) -> list[Image.Image]:
        """Its photos, RGB. UserError if there are none."""
        if not self.paths:
            raise UserError(f"{self.folder}: no photos (*.png) of the concept; run scripts/make_concepts.py")
        return [Image.open(path).convert("RGB") for path in self.paths]


def render_concept(world: World, name: str, pixels: int, count: int, start: int = 0) -> list[Image.Image]:
    """Photos `start` .. `start + count - 1` of the endless series of a concept's photos."""
    return [world.render(scene, pixels) for scene in concept_scenes(name, count, start=start)]


def write_concepts(world: World, folder: Path, pixels: int) -> None:
    """Render every concept's photos, masks and references to the folders that the README lists: `folder` and others
    beside it, with index and README. The same files every time."""
    one_place, masks, references = (
        folder.with_name(f"{folder.name}_{kind}") for kind in ("one_place", "masks", "references")
    )
    for name, place in ONE_PLACE.items():
        photos = [world.render_with_mask(scene, pixels) for scene in concept_scenes(name, PHOTOS)]
        _save((photo for photo, _ in photos), folder / name)
        _save((mask for _, mask in photos), masks / name)
        _save((world.render(scene, pixels) for scene in concept_scenes(name, PHOTOS, place=place)), one_place / name)
        alone = concept_scenes(name, REFERENCES, start=FIRST_REFERENCE, place="plain")
        _save((world.render(scene, pixels) for scene in alone), references / name)
    index = HEADER + "\n".join(f"{name}: {category}" for name, (category, _) in CONCEPTS.items()) + "\n"
    for photos_folder in (folder, one_place):
        (photos_folder / INDEX).write_text(index)
    example = next(iter(CONCEPTS))
    readme = README.format(
        name=folder.name,
        count=len(CONCEPTS),
        photos=PHOTOS,
        references=REFERENCES,
        pixels=pixels,
        index=INDEX,
        rows="\n".join(f"| `{name}` | {CONCEPTS[name][0]} | {place} |" for name, place in ONE_PLACE.items()),
        example=example,
        example_category=CONCEPTS[example][0],
    )
    (folder / "README.md").write_text(readme)


def write_style(world: World, folder: Path, pixels: int) -> None:
    """Render the pictures in the held-out style to `folder`/<k>.png. The same files every time."""
    _save((world.render(scene, pixels) for scene in style_scenes(world)), folder)


def read_concepts(folder: Path) -> list[ConceptPhotos]:
    """The concepts that the index of `folder` lists. UserError if there is no index or a folder is missing."""
    index = load_yaml(folder / INDEX)
    if not isinstance(index, dict) or not index or not all(isinstance(word, str) for word in index.values()):
        raise UserError(f"{folder / INDEX} must hold a line `folder: super category` for each concept")
    found = [ConceptPhotos(name, category, folder / name) for name, category in index.items()]
    if missing := [concept.name for concept in found if not concept.folder.is_dir()]:
        raise UserError(f"{folder / INDEX} lists {', '.join(missing)}, but there is no such folder beside it")
    return found


def _save(images: Iterable[Image.Image], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(images):
        image.save(folder / f"{k}.png", optimize=True)
