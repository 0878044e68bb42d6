# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""A folder of concepts behind HTTP: JSON in, PNG out, on Ray Serve (docs/scale.md)."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from ....utils.config.parsing import Config, parse_config
from ....utils.config.records import from_plain
from ....utils.config.values import name_or_path, setting
from ....utils.devices import device_problems, pick_device
from ....utils.errors import UserError, first_line
from ...backbone.backbone import Backbone
from ...backbone.safety import SafetyChecker, has_safety_checker
from ...concepts.concept import Concept
from ...conditioning.prompts import SLOT
from ...methods import Method
from ..config import Dtype
from ..draw import Drawn
from ..recipes import ImageRecipe
from ..run import DTYPES
from .image_queue import ImageQueue, QueueFull

ASKED = (  # entries of a recipe that a request may have
    *("prompt", "negative_prompt", "seed", "truncation", "steps", "guidance_scale", "scheduler", "height", "width"),
    "settings",
)
KEPT_CONCEPTS = 1000  # a megabyte each


@dataclass(frozen=True)
class ServingConfig(Config):
    """What `serve run neti.models.generation.serving.server:application` takes, as key=value."""

    # Folder of concept files; {taxi} in a prompt is taxi.safetensors
    concepts: Path = Path("outputs/many/concepts")
    # The base model of all of them
    pretrained_model_name_or_path: str = setting("miniature", parse=name_or_path)
    # Its revision on the hub
    revision: Optional[str] = None
    # fp16, fp32 or bf16
    torch_dtype: Dtype = Dtype.fp16
    # Where each replica draws: auto, cpu, mps, cuda or cuda:N
    device: str = "auto"
    # Run the base model's safety checker; unset: if it has one
    safety_checker: Optional[bool] = None
    # Images in progress at a time, in each replica
    max_batch: int = setting(8, at_least=1, at_most=1024)
    # Requests that wait or are in progress, in each replica; others wait at Ray Serve's proxy
    max_pending: int = setting(64, at_least=1, at_most=10_000)
    # Longest side of an image in pixels
    max_side: int = setting(1024, at_least=8, at_most=8192)
    # Processes, each with a model of its own
    replicas: int = setting(1, at_least=1, at_most=10_000)
    # GPUs that Ray sets aside for each; 0: draws on the CPU
    gpus_per_replica: float = setting(0.0, at_least=0)

    def problems(self) -> list[str]:
        return device_problems("device", self.device)


class ImageServer:
    """One replica: a base model, an image queue, and the concepts that were asked for.

    Raises UserError for a model or a folder that is not there.
    """

    def __init__(self, config: ServingConfig) -> None:
        if not config.concepts.is_dir():
            raise UserError(f"concepts = {config.concepts}: no such folder")
        model, revision = config.pretrained_model_name_or_path, config.revision
        where: Any = {
            "revision": revision,
            "dtype": DTYPES[config.torch_dtype.value],
            "device": pick_device(config.device),
        }
        self.config, self.backbone = config, Backbone.from_pretrained(model, **where)
        has_checker = has_safety_checker(model, revision) if config.safety_checker is None else config.safety_checker
        checker = SafetyChecker.from_pretrained(model, **where) if has_checker else None
        self.queue = ImageQueue(
            self.backbone, max_batch=config.max_batch, max_pending=config.max_pending, safety_checker=checker
        )
        self._threads = ThreadPoolExecutor(config.max_pending)  # they only wait for images
        self._concept = lru_cache(KEPT_CONCEPTS)(self._load)

    async def draw(self, asked: dict[str, Any]) -> Drawn:
        """The image of a request: the entries ASKED of a recipe, with {name} for a concept.

        A caller that goes away cancels it. Raises UserError for what is wrong with it, QueueFull where too many wait.
        """
        recipe = self._recipe(asked)
        names = dict.fromkeys([*recipe.parsed.names, *recipe.parsed_negative.names])
        ticket = self.queue.submit([recipe], {name: self._concept(name) for name in names})
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, next, ticket)
        finally:
            ticket.cancel()

    async def __call__(self, request: Any) -> Any:
        """A starlette Request whose body is `draw`'s JSON -> a PNG, or {"error": one line} with status 400 or 503."""
        from starlette.responses import JSONResponse, Response  # Ray Serve brings it along

        try:
            made = await self.draw(await request.json())
        except QueueFull as error:
            return JSONResponse({"error": str(error)}, 503)
        except ValueError as error:  # a UserError, or no JSON
            return JSONResponse({"error": first_line(error)}, 400)
        png = io.BytesIO()
        made.image.save(png, format="PNG")
        return Response(png.getvalue(), media_type="image/png", headers={"X-Withheld": str(made.withheld).lower()})

    def _recipe(self, asked: Any) -> ImageRecipe:
        if isinstance(asked, dict) and (unknown := next((key for key in asked if key not in ASKED), None)):
            raise UserError(f"{unknown!r} is no key of a request; it has {', '.join(ASKED)}")
        try:
            recipe = from_plain(ImageRecipe, asked)
        except ValueError as error:
            raise UserError(f"the request: {error}") from None
        if max(recipe.height or 0, recipe.width or 0) > self.config.max_side:
            raise UserError(f"height, width: at most {self.config.max_side} pixels here")
        return recipe

    def _load(self, name: str) -> Method:
        path = self.config.concepts / f"{name}.safetensors"  # a name in a prompt has letters, digits, _ and - alone
        if name == SLOT or not path.is_file():
            raise UserError(f"no concept {name!r} here: write {{name}}, the name of a file of the concepts' folder")
        return Concept.load(path, backbone=self.backbone).method


def application(arguments: dict[str, str]) -> Any:
    """A Ray Serve application; `arguments`: keys of `ServingConfig` with their values.

    Raises UserError for wrong ones, and without Ray Serve.
    """
    try:
        from ray import serve
    except ModuleNotFoundError:
        raise UserError('Ray Serve is not installed; run `pip install "neti[cluster]"`') from None
    config = parse_config(ServingConfig, [f"--{key}={value}" for key, value in arguments.items()])
    deployment: Any = serve.deployment(
        name="images",
        num_replicas=config.replicas,
        max_ongoing_requests=config.max_pending,
        ray_actor_options={"num_gpus": config.gpus_per_replica},
    )(ImageServer)
    return deployment.bind(config)
