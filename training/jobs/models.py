"""The base model that a worker keeps from one job to the next."""

from __future__ import annotations

import gc

import torch

from ...models.backbone.backbone import Backbone


class SharedModel:
    """One base model at a time, on one device: that of the job before, if the next one wants the same."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._wanted: tuple[str, str | None, torch.dtype] | None = None
        self._backbone: Backbone | None = None

    def get(self, name: str, revision: str | None, dtype: torch.dtype) -> Backbone:
        """The model, whole on the device. UserError as `Backbone.from_pretrained`."""
        if self._backbone is None or self._wanted != (name, revision, dtype):
            self._backbone = None  # two would not fit everywhere
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._backbone = Backbone.from_pretrained(name, revision=revision, dtype=dtype, device=self.device)
            self._wanted = name, revision, dtype
        return self._backbone.to(self.device)
