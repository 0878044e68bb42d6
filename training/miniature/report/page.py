"""docs/miniature.md: what the miniature is, how to make it again, and what it was measured to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..world.objects import CONCEPTS
from ..world.places import PLACES
from ..world.styles import HELD_OUT_STYLE, STYLES
from .rows import SPEED_GUIDANCE
from .table import Row, confusion, own_share

PAGE = """# The miniature

<!-- Written by scripts/miniature_report.py; edit training/miniature/report/page.py instead. -->

A Stable Diffusion in small, really trained, that comes with the toolkit (`pretrained_model_name_or_path: miniature`):
every command runs on it in minutes on a CPU, through the same classes and scripts as on the real one. It is a teaching
model and a laboratory. Its world is synthetic, so the truth about every picture is known, and what the toolkit claims
can be measured. What is measured on it says how a method behaves, not how good its pictures would be on Stable
Diffusion v1.4.

## Its world

A scene shows one of {num_objects} emoji glyphs, recoloured or patterned or not, once or twice, anywhere in the picture:

- in one of {num_categories} categories: {categories};
- in one of {num_places} places: {places};
- in one of {num_styles} styles: {styles}.

Captions tell each fact about half of the time, in several wordings. {num_concepts} further glyphs never occur in
pretraining; they are the concepts to personalise, in [`input_configs/concepts`](../input_configs/concepts/README.md).
Nor does one further style, {held_out_style}.
About one (category, place, style) combination in fifteen never occurs either; a third of the held-out scenes below
have such a combination.

## Its parts

| part | parameters | file size |
|---|---|---|
{parts}

Images have {pixels} x {pixels} pixels, latents {latent} x {latent}; the U-Net has Stable Diffusion 1.x's topology with
its {layers} cross-attention layers, epsilon prediction and noise schedule. The text encoder started as CLIP A's text
tower. The judge is a second CLIP, trained from another seed, that generation never sees: it only measures.

## Train it again

```bash
python scripts/pretrain_miniature.py --config_path input_configs/miniature_cpu.yaml   # hours on two CPU cores
python scripts/pretrain_miniature.py --config_path input_configs/miniature_gpu.yaml   # the larger world, on a GPU
```

Both go on where they were stopped, and take `--minutes 10` to run in slices. Drawing the world needs the font Noto
Color Emoji (Debian package `fonts-noto-color-emoji`); using the miniature does not. This page, the concepts' photos:

```bash
python scripts/miniature_report.py --config_path input_configs/miniature_report.yaml
python scripts/make_concepts.py
```

## What it reaches

On {captions} held-out scenes. In brackets: 95% bootstrap intervals, over scenes or, for the concept rows, over
concepts. "Right" is what the judge answers zero-shot: of captions that differ in nothing but this one fact, averaged
over wordings, the one most similar to the image. Its accuracy on real renders of the same captions is the ceiling:
where that is low, the row says more about the judge than about the model. Place is asked only where the caption names
one.

| what | wanted | measured | met | |
|---|---|---|---|---|
{table}

{settings}

{concepts}
## Pictures

{pictures}
## License and attribution

The training pictures were rendered from glyphs of Noto Color Emoji by Google, licensed under the [SIL Open Font
License 1.1](https://openfontlicense.org); the photos in `input_configs/concepts` are such renderings too. The font
itself is not part of this project. The weights were trained on nothing but these renderings and this project's own
captions, and come under the project's license.
"""


@dataclass(frozen=True)
class Picture:
    """One picture of the page, by file name in docs/images."""

    file: str
    title: str
    text: str


def model_parts(folders: Mapping[str, Path]) -> list[tuple[str, int, int]]:
    """(name, parameters, bytes) of every model in the folders, its shards together, read from the files themselves."""
    found: dict[str, tuple[int, int]] = {}
    for title, folder in folders.items():
        for path in sorted(folder.rglob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                parameters = sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
            inside = path.parent.relative_to(folder)
            name = title if inside == Path() else f"{title}: {inside}"
            before = found.get(name, (0, 0))
            found[name] = (before[0] + parameters, before[1] + path.stat().st_size)
    return [(name, *sizes) for name, sizes in found.items()]


def _parts_table(parts: Sequence[tuple[str, int, int]]) -> str:
    total = ("together", sum(part[1] for part in parts), sum(part[2] for part in parts))
    return "\n".join(f"| {name} | {count / 1e6:.2f} M | {size / 1e6:.1f} MB |" for name, count, size in [*parts, total])


def _results_table(rows: Sequence[Row]) -> str:
    verdict = {True: "yes", False: "**no**", None: "-"}
    return "\n".join(f"| {row.what} | {row.bar} | {row.value} | {verdict[row.met]} | {row.note} |" for row in rows)


def _settings(settings: Mapping[str, Any], speed: Mapping[str, Any]) -> str:
    machine, load = speed["machine"], speed["load"]
    versions = {"processor", "cores", "threads", "system"}
    listed = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in versions)
    busy = "" if load is None else f", load average {load:.1f} meanwhile"
    told = "; ".join(f"{name} {value}" for name, value in settings.items())
    return (
        f"Settings: {told}. Speed on: {machine['processor']}, {machine['cores']} cores, PyTorch with "
        f"{machine['threads']} threads, {machine['system']}{busy}, guidance {SPEED_GUIDANCE}, one image at a time. "
        f"Versions: {listed}."
    )


def _concept_tables(measured: Mapping[str, Any], prompt: str) -> str:
    """Per concept: shares of images nearest to their own photos; then where the learned concepts' images went."""
    categories, learned = measured["categories"], measured["neti"]
    shares = {kind: own_share(measured[kind]) for kind in ("neti", "word", "photos")}
    lines = [
        "### Concept by concept",
        "",
        f'Share of the images of "{prompt}" whose nearest concept, by the judge among the photos of all '
        f"{len(categories)}, is their own:",
        "",
        "| concept | super category | learned by NeTI | super-category word alone | fresh photos of it |",
        "|---|---|---|---|---|",
    ]
    for name, category in categories.items():
        cells = [f"{100 * shares[kind][name]:.0f}%" if name in shares[kind] else "-" for kind in shares]
        lines.append(f"| {name} | {category} | {' | '.join(cells)} |")
    if learned:
        lines += [
            "",
            "Nearest concept (columns) of the images of each learned concept (rows):",
            "",
            f"| | {' | '.join(categories)} |",
            f"|---|{'---|' * len(categories)}",
        ]
        for name, counts in confusion(learned, list(categories)).items():
            lines.append(f"| {name} | {' | '.join(str(count) if count else '' for count in counts)} |")
    return "\n".join([*lines, ""])


def render_page(
    *,
    measured: Mapping[str, Any],
    rows: Sequence[Row],
    parts: Sequence[tuple[str, int, int]],
    categories: Mapping[str, Mapping[str, str]],
    sizes: Mapping[str, int],
    settings: Mapping[str, Any],
    prompt: str,
    pictures: Sequence[Picture],
) -> str:
    """The whole page. sizes: pixels, latent, layers of the model."""
    return PAGE.format(
        num_objects=sum(len(names) for names in categories.values()),
        num_categories=len(categories),
        categories=", ".join(categories),
        num_places=len(PLACES),
        places=", ".join(PLACES),
        num_styles=len(STYLES),
        held_out_style=HELD_OUT_STYLE,
        styles=", ".join(STYLES),
        num_concepts=len(CONCEPTS),
        parts=_parts_table(parts),
        captions=len(measured["vae"]["psnr"]),
        table=_results_table(rows),
        settings=_settings(settings, measured["speed"]),
        concepts=_concept_tables(measured["concepts"], prompt),
        pictures="\n".join(
            f"### {picture.title}\n\n{picture.text}\n\n![{picture.title}](images/{picture.file})\n"
            for picture in pictures
        ),
        **sizes,
    )
