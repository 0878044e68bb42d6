"""Text encoders that wait elsewhere (on the CPU, on the disk) until their `forward` is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...utils.errors import UserError


@contextmanager
def fetched(encoders: Sequence[Any]) -> Iterator[None]:
    """Bring them to where they compute, as only their parts are called here, which would not fetch them.

    Knows accelerate's offloading by model and diffusers' group offloading. UserError for sequential offloading, whose
    weights are nowhere between the calls of the parts.
    """
    hooks = []
    for encoder in encoders:
        if encoder.device.type == "meta":
            raise UserError("sequential CPU offloading is not supported with concepts; use enable_model_cpu_offload()")
        registry = getattr(encoder, "_diffusers_hook", None)
        own = getattr(encoder, "_hf_hook", None) or (registry and registry.get_hook("group_offloading"))
        if own:
            own.pre_forward(encoder)
            hooks.append((own, encoder))
    try:
        yield
    finally:
        for own, encoder in hooks:
            own.post_forward(encoder, None)
