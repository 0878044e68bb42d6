"""How a picture becomes as small as a metric model's input: a choice that configs name, so no torch here."""

from __future__ import annotations

from ...utils.config.choices import Choice


class Resizing(Choice):
    """How a picture is made as small as the metric model's input. Published numbers differ in this."""

    pil = "pil"  # Pillow's antialiased filter on 8-bit pixels: the model's own image processor
    tensor = "tensor"  # bicubic on float pixels WITHOUT antialiasing, as evaluation code that works on tensors does
