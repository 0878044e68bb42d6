"""Peak memory at Stable Diffusion v1.4's size, each measured in a process that does nothing else."""

from __future__ import annotations

import pytest

from neti.models.generation.config import Dtype
from neti.training.studies.benchmark.config import BenchmarkConfig, Subject
from neti.training.studies.benchmark.memory import peak

GB = 10**9


@pytest.mark.cuda_only
@pytest.mark.parametrize(("what", "limit"), [("training", 6 * GB), ("image", 4 * GB)])
def test_it_fits(what: str, limit: int) -> None:
    """Training: batch 1, gradient checkpointing; an image: with the safety checker; both in fp16."""
    found, _ = peak(BenchmarkConfig(device="cuda", dtype=Dtype.fp16), Subject.sd14, what)
    print(f"{what}: {found / GB:.2f} GB")
    assert found < limit
