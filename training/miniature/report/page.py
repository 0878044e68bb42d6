"""The measured part of docs/miniature.md; the rest is written by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from .measurements import SPEED_GUIDANCE
from .table import Row, own_share

PAGE = """\
Parts of the measured model:

| part | parameters | file size |
|---|---|---|
{parts}

On {captions} held-out scenes:

| what | wanted | measured | met | |
|---|---|---|---|---|
{table}

{settings}

### Concept by concept

Share of the images of "{prompt}" whose nearest concept, by the metric model among the photos of all
{concepts}, is their own:

| concept | super category | learned by NeTI | super-category word alone | fresh photos of it |
|---|---|---|---|---|
{shares}

{confusion}

{pictures}
"""


class Picture(NamedTuple):
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


def render_page(
    measured: Mapping[str, Any],
    rows: Sequence[Row],
    parts: Sequence[tuple[str, int, int]],
    settings: Mapping[str, Any],
    prompt: str,
    pictures: Sequence[Picture],
) -> str:
    """The measured part, from results by the names of `Measurements`."""
    verdict = {True: "yes", False: "**no**", None: "-"}
    together = ("together", sum(part[1] for part in parts), sum(part[2] for part in parts))
    concepts = measured["concepts"]
    shares = {kind: own_share(concepts[kind]) for kind in ("neti", "word", "photos")}
    return PAGE.format(
        parts="\n".join(f"| {name} | {n / 1e6:.2f} M | {size / 1e6:.1f} MB |" for name, n, size in [*parts, together]),
        captions=len(measured["vae"]["psnr"]),
        table="\n".join(f"| {row.what} | {row.goal} | {row.value} | {verdict[row.met]} | {row.note} |" for row in rows),
        settings=_settings(settings, measured["speed"]),
        prompt=prompt,
        concepts=len(concepts["categories"]),
        shares="\n".join(
            f"| {name} | {category} | "
            + " | ".join(f"{100 * of[name]:.0f}%" if name in of else "-" for of in shares.values())
            + " |"
            for name, category in concepts["categories"].items()
        ),
        confusion=_confusion(concepts["neti"], list(concepts["categories"])),
        pictures="\n\n".join(
            f"### {picture.title}\n\n{picture.text}\n\n![{picture.title}](images/{picture.file})"
            for picture in pictures
        ),
    )


def confusion(nearest: Mapping[str, Sequence[str]], names: Sequence[str]) -> dict[str, list[int]]:
    """Concept -> how many of its images lie nearest to each of `names`."""
    counts = {name: Counter(answers) for name, answers in nearest.items()}
    return {name: [counts[name][other] for other in names] for name in counts}


def _confusion(nearest: Mapping[str, Sequence[str]], names: Sequence[str]) -> str:
    if not nearest:
        return "No concept was learned."
    lines = ["Nearest concept (columns) of the images of each learned concept (rows):", ""]
    lines += [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for name, counts in confusion(nearest, names).items():
        lines.append(f"| {name} | {' | '.join(str(count) if count else '' for count in counts)} |")
    return "\n".join(lines)


def _settings(settings: Mapping[str, Any], speed: Mapping[str, Any]) -> str:
    machine, load = speed["machine"], speed["load"]
    versions = {"processor", "cores", "threads", "system"}
    listed = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in versions)
    busy = "" if load is None else f", load average {load:.1f} meanwhile"
    return (
        f"Settings: {'; '.join(f'{name} {value}' for name, value in settings.items())}. Speed on: "
        f"{machine['processor']}, {machine['cores']} cores, PyTorch with {machine['threads']} threads, "
        f"{machine['system']}{busy}, guidance {SPEED_GUIDANCE}, one image at a time. Versions: {listed}."
    )
