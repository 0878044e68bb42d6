"""Concepts of a folder, served: by the class itself, its HTTP answers, and on a local Ray cluster."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frames import created
from PIL import Image

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.generation.config import Dtype
from neti.models.generation.draw import draw
from neti.models.generation.recipes import ImageRecipe
from neti.models.generation.serving.image_queue import QueueFull
from neti.models.generation.serving.server import ImageServer, ServingConfig, application
from neti.models.methods import NeTI, NeTIConfig
from neti.utils.errors import UserError

ASKED = {"prompt": "a {mug}", "steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_backbone_folder: Path) -> Path:
    """mug.safetensors and cat.safetensors."""
    place, backbone = tmp_path_factory.mktemp("concepts"), Backbone.from_pretrained(str(tiny_backbone_folder))
    for seed, name in enumerate(("mug", "cat")):
        word = backbone.word_embedding("toy")
        method = created(NeTI, NeTIConfig(), backbone.frame.num_places, word, torch.Generator().manual_seed(seed))
        Concept(method.eval(), "<toy>", "toy").save(place / f"{name}.safetensors")
    return place


def config(folder: Path, backbone: Path, **changes: Any) -> dict[str, str]:
    keys = {"concepts": folder, "pretrained_model_name_or_path": backbone, "torch_dtype": "fp32", "device": "cpu"}
    return {key: str(value) for key, value in {**keys, **changes}.items()}


@pytest.fixture
def server(folder: Path, tiny_backbone_folder: Path) -> Iterator[ImageServer]:
    made = ImageServer(ServingConfig(folder, str(tiny_backbone_folder), torch_dtype=Dtype.fp32, device="cpu"))
    yield made
    made.queue.close()


def expected(folder: Path, backbone: Path, asked: dict[str, Any]) -> np.ndarray:
    known = {name: Concept.load(folder / f"{name}.safetensors").method for name in ("mug", "cat")}
    [made] = draw(Backbone.from_pretrained(str(backbone)), [ImageRecipe(**asked)], known)
    return np.asarray(made.image, dtype=int)


def test_requests_at_once_get_their_own_images(server: ImageServer, folder: Path, tiny_backbone_folder: Path) -> None:
    asked = [ASKED, {**ASKED, "prompt": "a {cat}", "steps": 3}, {**ASKED, "truncation": 4}]

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*map(server.draw, asked))

    for made, request in zip(asyncio.run(all_at_once()), asked, strict=True):
        apart = np.asarray(made.image, dtype=int) - expected(folder, tiny_backbone_folder, request)
        assert np.abs(apart).max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a {dog}"}, "no concept 'dog' here"),
        ({"prompt": "a {}"}, "no concept"),
        ({"stepz": 3}, "'stepz' is no key of a request"),
        ({"steps": "many"}, "the request: steps"),
        ({"height": 4096}, "at most 1024 pixels"),
        ({"base_model": "other"}, "'base_model' is no key"),
    ],
)
def test_mistakes_are_one_line(server: ImageServer, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        asyncio.run(server.draw({**ASKED, **change}))
    assert "\n" not in str(caught.value)


def test_a_caller_that_goes_away_cancels_its_image(server: ImageServer) -> None:
    async def go_away() -> None:
        await asyncio.wait_for(server.draw({**ASKED, "steps": 900}), timeout=0.5)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(go_away())
    assert server.queue.pending == 0


def test_what_cannot_be_served_is_refused(folder: Path, tiny_backbone_folder: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        ImageServer(ServingConfig(folder / "nowhere"))
    server = ImageServer(ServingConfig(folder, str(tiny_backbone_folder), device="cpu", max_pending=1))

    async def two() -> list[Any]:
        long = {**ASKED, "steps": 100}
        return await asyncio.gather(server.draw(long), server.draw(long), return_exceptions=True)

    assert any(isinstance(one, QueueFull) for one in asyncio.run(two()))
    server.queue.close()


def test_http_answers(server: ImageServer, folder: Path, tiny_backbone_folder: Path) -> None:
    requests = pytest.importorskip("starlette.requests")

    def answer(body: bytes) -> Any:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        return asyncio.run(server(requests.Request({"type": "http", "headers": []}, receive)))

    good = answer(json.dumps(ASKED).encode())
    assert (good.status_code, good.media_type, good.headers["x-withheld"]) == (200, "image/png", "false")
    pixels = np.asarray(Image.open(io.BytesIO(good.body)), dtype=int)
    assert np.abs(pixels - expected(folder, tiny_backbone_folder, ASKED)).max() <= 1
    for body in (b"no json", b"[1]", json.dumps({**ASKED, "prompt": "a {dog}"}).encode()):
        bad = answer(body)
        assert bad.status_code == 400 and list(json.loads(bad.body)) == ["error"]


def test_on_a_cluster(folder: Path, tiny_backbone_folder: Path) -> None:
    """The replicas of a Ray Serve application, asked without its HTTP proxy, which would need a port."""
    serve = pytest.importorskip("ray.serve", exc_type=ImportError)
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(proxy_location="Disabled")
        handle = serve.run(application(config(folder, tiny_backbone_folder)))
        asked = [ASKED, {**ASKED, "prompt": "a {cat}"}]
        coming = [handle.draw.remote(request) for request in [*asked, {**ASKED, "prompt": "a {dog}"}]]
        for request, answer in zip(asked, coming, strict=False):
            pixels = np.asarray(answer.result(timeout_s=300).image, dtype=int)
            assert np.abs(pixels - expected(folder, tiny_backbone_folder, request)).max() <= 1
        with pytest.raises(ValueError, match="no concept 'dog' here"):
            coming[2].result(timeout_s=300)
    finally:
        serve.shutdown()
        ray.shutdown()
