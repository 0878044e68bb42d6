"""Rendered scenes as one memory-mapped array per split: deterministic, rendered once, shared by every stage."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..world.world import Scene, World

TRAIN_SEED, HELD_OUT_SEED = 1, 2
CHUNK = 500


def scenes(world: World, count: int, *, held_out: bool = False) -> list[Scene]:
    """The first ``count`` scenes of a split. Held-out scenes are unseen draws, a third of them unseen combinations."""
    if not held_out:
        return [world.scene(TRAIN_SEED, index) for index in range(count)]
    return [world.scene(HELD_OUT_SEED, index, held_out=index % 3 == 0) for index in range(count)]


Grouping = list[np.ndarray]  # the indices of the scenes of each group


def alike(chosen: list[Scene]) -> tuple[Grouping, Grouping]:
    """The scenes by place and style, where only the object differs; and by style, where the place differs too."""
    of_ground: dict[tuple[str, str], list[int]] = {}
    of_style: dict[str, list[int]] = {}
    for index, scene in enumerate(chosen):
        of_ground.setdefault((scene.place, scene.style), []).append(index)
        of_style.setdefault(scene.style, []).append(index)
    return [np.array(found) for found in of_ground.values()], [np.array(found) for found in of_style.values()]


def _render_chunk(chunk: list[Scene], world: World, pixels: int) -> np.ndarray:
    return np.stack([np.asarray(world.render(scene, pixels)) for scene in chunk])


def render_split(world: World, chosen: list[Scene], pixels: int, path: Path, workers: int) -> np.ndarray:
    """uint8 images [count, pixels, pixels, 3], memory-mapped; rendered on the first call, reused afterwards."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".partial.npy")
        shape = (len(chosen), pixels, pixels, 3)
        images = np.lib.format.open_memmap(partial_path, mode="w+", dtype=np.uint8, shape=shape)
        chunks = [chosen[start : start + CHUNK] for start in range(0, len(chosen), CHUNK)]
        render = partial(_render_chunk, world=world, pixels=pixels)
        with ProcessPoolExecutor(workers) as pool:
            rendered = tqdm(pool.map(render, chunks), total=len(chunks), desc="render", mininterval=5)
            for number, chunk in enumerate(rendered):
                images[number * CHUNK : number * CHUNK + len(chunk)] = chunk
        images.flush()
        partial_path.rename(path)
    return np.load(path, mmap_mode="r")


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [B,H,W,3] to float32 [B,3,H,W] in -1..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> np.ndarray:
    """float [B,3,H,W] in -1..1 to uint8 [B,H,W,3]."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
