"""docs/performance.md: what was measured, on what, and how to measure it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAGE = """# Performance

<!-- Written by scripts/benchmark.py; edit training/studies/benchmark/page.py instead. -->

Almost all of a user's wait is the frozen model's own arithmetic. So speed is told as a ratio to a floor that no method
on the same model can go below, both measured in turn in one run (A B A B), as median, smallest and largest over the
rounds; a busy machine slows both alike. "Counted" is the same ratio in floating-point operations of matrix products
and convolutions: what would be measured if nothing but them took time.

- **Floor of a training step**: U-Net forward and backward on latents, with a conditioning that is already there. Above
  it come the mapper, and the text encoder once per layer and sample, forward and backward. On Stable Diffusion v1.4
  that is 0.43 TFLOP beside 1.67, a ratio of 1.26; on the miniature, whose U-Net is small, the text encoder weighs more.
- **Floor of making images**: the stock StableDiffusionPipeline with a plain prompt. Above it comes the conditioning of
  all timesteps and layers, paid once for all seeds.
- **Floor of the conditioning**: one pass of the stock text encoder over as many rows.

`sd14` is Stable Diffusion v1.4's architecture with random weights: speed and memory do not depend on the weights.

{chapters}
## Measure it yourself

```bash
python scripts/benchmark.py --config_path input_configs/benchmark.yaml          # the miniature, on a CPU
python scripts/benchmark.py --config_path input_configs/benchmark_gpu.yaml      # both models, on a GPU
python scripts/benchmark.py --config_path input_configs/benchmark.yaml --name cpu-sd14 --models "[sd14]" \\
    --sections "[training]" --resolution 512 --batch 1 --accumulation 1 --repeats 1     # minutes per row on a CPU
```

Each `--name` makes a chapter of this page, from its file in `outputs/benchmark`.

## To make it fit, to make it faster

**Memory, in training**: `optim.mixed_precision: bf16` (`fp16` on GPUs before Ampere); `optim.train_batch_size: 1` with
more `gradient_accumulation_steps`; `optim.gradient_checkpointing: true`.

**Memory, for images**: `batch_size: 1`. Images are decoded one at a time anyway, and memory does not grow with the
number of seeds.

**Time, in training**: half precision; a larger batch with fewer accumulation steps; `optim.compile_unet: true` on a
GPU, if its minutes at the start pay; `optim.allow_tf32: true` where it is float32.

**Time, for images**: half precision; all seeds of a prompt in one call; a larger `batch_size`; fewer steps.

**Several GPUs**: `accelerate launch --multi_gpu --num_processes N scripts/train.py ...` ([training.md](training.md)).

`optim.compile_unet` compiles the U-Net's training pass into one graph, or fails; sampling stays as it is. In a training
step the host reads nothing back from the device: numbers drawn on the CPU travel through pinned memory, losses are read
every ten steps. Under `fp16` the loss scaler looks once per optimizer step whether gradients overflowed.
"""


def render_page(chapters: Mapping[str, Mapping[str, Any]]) -> str:
    """The page. chapters: name -> settings, machine and tables, as the JSON files hold them."""
    return PAGE.format(chapters="\n".join(_chapter(name, found) for name, found in chapters.items()))


def _chapter(name: str, found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    place = machine.get("accelerator") or machine["processor"]
    told = {
        "Machine": f"{place}, {machine['cores']} cores, PyTorch with {machine['threads']} threads, "
        f"{machine['system']}; load average before the start: {machine['load']}",
        "Versions": _listed(machine, {"accelerator", "processor", "cores", "threads", "system", "load"}),
        "Settings": _listed(found["settings"], set()),
    }
    lines = [f"## {name}", "", *(f"{title}: {text}.  " for title, text in told.items()), ""]
    for title, rows in found["tables"].items():
        lines += [f"### {title}", "", "| what | measured | counted | wanted | |", "|---|---|---|---|---|"]
        lines += [
            "| " + " | ".join(row[key] for key in ("what", "value", "counted", "wanted", "note")) + " |" for row in rows
        ]
        lines.append("")
    return "\n".join(lines)


def _listed(values: Mapping[str, Any], without: set[str]) -> str:
    shown = {key: value for key, value in values.items() if key not in without and value is not None}
    return ", ".join(
        f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in shown.items()
    )
