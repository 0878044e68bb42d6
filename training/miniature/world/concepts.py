"""The held-out concepts as folders of photos: all that the toolkit is ever shown of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ....utils.config.yaml_text import load_yaml
from ....utils.errors import UserError
from .objects import CONCEPTS
from .world import World, concept_scenes, style_scenes

INDEX = "concepts.yaml"
PHOTOS = 5

README = """# Held-out concepts of the miniature

{count} things that the bundled miniature Stable Diffusion has never seen; it knows only the words for their super
categories. Each folder holds {photos} photos of {pixels} x {pixels} pixels to learn the concept from; `{index}` lists
the same for programs.

| folder | super category |
|---|---|
{rows}

Learn one:

```bash
python scripts/train.py --config_path input_configs/train_miniature.yaml --log.exp_name {example} \\
  --data.train_data_dir input_configs/concepts/{example} --data.super_category_token {example_category} \\
  --data.placeholder_token "<{example}>"
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
    return [world.render(scene, pixels) for scene in concept_scenes(name, start + count)[start:]]


def write_concepts(world: World, folder: Path, pixels: int) -> None:
    """Render every concept to `folder`/<name>/<k>.png, with the index and a README. The same files every time."""
    for name in CONCEPTS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k, photo in enumerate(render_concept(world, name, pixels, PHOTOS)):
            photo.save(folder / name / f"{k}.png", optimize=True)
    lines = [f"{name}: {category}" for name, (category, _) in CONCEPTS.items()]
    header = "# The held-out concepts: folder -> super category, the word that data.super_category_token takes\n"
    (folder / INDEX).write_text(header + "\n".join(lines) + "\n")
    example = next(iter(CONCEPTS))
    readme = README.format(
        count=len(CONCEPTS),
        photos=PHOTOS,
        pixels=pixels,
        index=INDEX,
        rows="\n".join(f"| `{name}` | {category} |" for name, (category, _) in CONCEPTS.items()),
        example=example,
        example_category=CONCEPTS[example][0],
    )
    (folder / "README.md").write_text(readme)


def write_style(world: World, folder: Path, pixels: int) -> None:
    """Render the pictures in the held-out style to `folder`/<k>.png. The same files every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, scene in enumerate(style_scenes(world)):
        world.render(scene, pixels).save(folder / f"{k}.png", optimize=True)


def read_concepts(folder: Path) -> list[ConceptPhotos]:
    """The concepts that the index of `folder` lists. UserError if there is no index or a folder is missing."""
    index = load_yaml(folder / INDEX)
    found = [ConceptPhotos(name, category, folder / name) for name, category in index.items()]
    if missing := [concept.name for concept in found if not concept.folder.is_dir()]:
        raise UserError(f"{folder / INDEX} lists {', '.join(missing)}, but there is no such folder beside it")
    return found
