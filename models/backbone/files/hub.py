"""A repository of the Hugging Face hub, fetched into the hub's cache or found there."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    IncompleteSnapshotError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ....utils.errors import UserError, first_line
from .weights import find_weights

HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
SETTINGS = ["*.json", "tokenizer*/*"]  # small files, all of which are fetched
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
}


def fetch(name: str, revision: str | None, parts: Collection[str]) -> Path:
    """The local folder of a repository: its settings and tokenizers, and the weights of `parts` in one form each.

    Without a network it is what the cache holds, whole or not: who reads the folder finds what is missing.
    Raises UserError as `snapshot`.
    """
    folder = snapshot(name, revision, SETTINGS)
    if wanted := _weight_names(name, revision, folder, parts):
        snapshot(name, revision, wanted)
    return folder


def snapshot(name: str, revision: str | None, patterns: list[str], key: str = "model") -> Path:
    """The folder of a repository in the hub's cache, with the files of these patterns fetched where there is a network.

    Raises UserError, which starts with `key`, and says what to do: no such repository or revision, a gated one, no
    network and nothing cached.
    """
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except IncompleteSnapshotError as error:  # no network, and a cache filled in part or by other programs
        return Path(error.snapshot_path)
    except Exception as error:  # the hub's own, its HTTP library's, and whatever a proxy makes of them
        version = f" (revision {revision})" if revision else ""
        raise UserError(f"{key} {name!r}{version}: no such folder here, and {_advice(name, key, error)}") from error


def is_in_cache(folder: Path) -> bool:
    """Whether the folder is a snapshot of a repository, in the layout of the hub's cache."""
    return folder.parent.name == "snapshots"


def _weight_names(name: str, revision: str | None, folder: Path, parts: Collection[str]) -> list[str]:
    """The paths, inside the repository, of the weights of those parts that it has."""
    try:
        listing = [file.path for file in huggingface_hub.get_cached_repo_tree(name, revision=revision)]
    except CachedRepoTreeNotFoundError:  # cached by an older version, or copied: what lies there is all that is known
        return []
    names = []
    for part in parts:
        inside = [path.removeprefix(f"{part}/") for path in listing if path.startswith(f"{part}/")]
        try:
            names += [f"{part}/{file}" for file in find_weights(part, folder / part, inside).names]
        except (OSError, ValueError, KeyError):  # there are none, or no index of their shards: who reads them will tell
            continue
    return names


def _advice(name: str, key: str, error: Exception) -> str:
    """What went wrong with the hub, and what helps."""
    login = "log in with `hf auth login`"
    if isinstance(error, GatedRepoError):
        return f"the hub repository is gated: accept its terms at https://huggingface.co/{name}, then {login}"
    if isinstance(error, RepositoryNotFoundError):
        other = f"it is called {MOVED[name]!r} now" if name in MOVED else "check the name (it may have been removed)"
        return f"the hub has no such repository: {other}; if it is a private one, {login}"
    if isinstance(error, RevisionNotFoundError):
        return "the hub repository has no such revision: give a branch, a tag or a commit of it"
    option = "pretrained_model_name_or_path" if key == "model" else key
    return (
        f"the hub repository could not be fetched and is not cached ({first_line(error)}); check the name and the "
        f"network, or pass the path of a local folder as {option}"
    )
