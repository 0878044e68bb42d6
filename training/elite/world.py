"""Training pictures from the miniature's world, drawn when they are needed, with the object's true mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ...models.conditioning.prompts import OBJECT_TEMPLATES, SLOT
from ..miniature.world.captions import caption, full_noun
from ..miniature.world.objects import Look
from ..miniature.world.world import Scene, World, is_held_out
from .augment import augment_image, augment_object
from .config import GLOBAL, LOCAL, DataConfig, Stage
from .samples import WORDS, Sample, to_tensor

_PHOTO, _TARGET, _DRAW, _BATCH = 0, 1, 2, 3  # separate streams of randomness


class WorldSamples:
    """Photos of the world's things; a batch shows them as they are, or the same things in other scenes.

    As they are (the official recipe): target and encoder's picture are one photo, named by a template. In another scene
    (`data.other_scene` of the batches): the target is a picture of the same thing, named by its caption, and w0 stands
    alone. So w0 learns to carry the thing without its ground; a data set of the real world has no such pairs.
    """

    def __init__(self, world: World, config: DataConfig, stage: Stage, *, seed: int, side: int, batch_size: int):
        unknown = set(config.favourites) - set(world.categories)
        if unknown:
            raise ValueError(f"data.favourites: the world has no {', '.join(sorted(unknown))}")
        self.world, self.config, self.stage, self.seed = world, config, stage, seed
        self.side, self.batch_size = side, batch_size
        self.favourites = replace(world, categories={k: world.categories[k] for k in config.favourites})

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng((self.seed, _DRAW, number))
        batch = np.random.default_rng((self.seed, _BATCH, number // self.batch_size))
        elsewhere = batch.random() < self.config.other_scene
        world = self.favourites if rng.random() < self.config.favourites_share else self.world
        photo = self._scene(world, _PHOTO, number)
        photo = replace(photo, style="photo", light=None)
        drawn, mask = self.world.render_with_mask(photo, self.side)
        image, shape = to_tensor(drawn), (to_tensor(mask) > 0.5).float()
        if elsewhere:
            scene = self._scene(world, _TARGET, number, photo.look)
            target = to_tensor(self.world.render(scene, self.config.resolution))
            text = caption(scene, rng, name=SLOT)
        else:
            scene, same = photo, self.side == self.config.resolution
            target = image if same else to_tensor(self.world.render(photo, self.config.resolution))
            text = str(rng.choice(OBJECT_TEMPLATES))
        words = 1 if elsewhere or self.stage is LOCAL else WORDS
        if self.stage is GLOBAL:
            seen, thing = augment_image(image, rng), image
        else:
            seen = image
            thing, shape = augment_object(image * shape, shape, rng)
        return Sample(
            target=target * 2 - 1,
            valid=torch.ones(1, *target.shape[1:]),
            image=seen,
            object=thing,
            mask=shape,
            text=text,
            words=words,
            noun=full_noun(scene),
        )

    def _scene(self, world: World, stream: int, number: int, look: Look | None = None) -> Scene:
        """A scene with one object, of a combination that training may show; with `look`, of that very thing."""
        for attempt in range(1000):
            scene = world.scene(10 * self.seed + stream, 1000 * number + attempt)
            scene = replace(scene, look=look or scene.look, count=1)
            if not is_held_out(scene):
                return scene
        raise AssertionError("a thousand draws without a fitting combination")
