"""The image queue: requests of several threads in one batch, each with its own images, errors and end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
from frames import created
from perfusion_concepts import make_perfusion

from neti.models.backbone.backbone import Backbone
from neti.models.generation.draw import Drawn, draw
from neti.models.generation.recipes import ImageRecipe
from neti.models.generation.serving.image_queue import ImageQueue, QueueFull
from neti.models.generation.serving.progress import InProgress
from neti.models.methods import Method, NeTI, NeTIConfig
from neti.utils.errors import UserError

RECIPE = ImageRecipe("A photo of a {}", steps=3)


@pytest.fixture
def concepts(tiny_backbone: Backbone) -> list[Method]:
    """Two of NeTI, and one of Perfusion, which edits the attention."""
    frame, word = tiny_backbone.frame.num_places, tiny_backbone.word_embedding("toy")
    two = [created(NeTI, NeTIConfig(), frame, word, torch.Generator().manual_seed(seed)).eval() for seed in (0, 1)]
    return [*two, make_perfusion(tiny_backbone).eval()]


@pytest.fixture
def rows(tiny_backbone: Backbone) -> list[int]:
    """Rows of every U-Net call."""
    found: list[int] = []
    tiny_backbone.unet.register_forward_pre_hook(lambda _, args: found.append(len(args[0])))
    return found


@contextmanager
def held(queue: ImageQueue, concept: Method) -> Iterator[None]:
    """Nothing is begun inside: the queue's thread waits in the first step of an image of its own."""
    waiting, go_on = Event(), Event()

    def hold(_: int) -> None:
        waiting.set()
        go_on.wait(30)

    ticket = queue.submit([replace(RECIPE, steps=1, seed=99)], {"{}": concept}, hold)
    assert waiting.wait(30)
    try:
        yield
    finally:
        go_on.set()
        list(ticket)


def same(ours: Sequence[Drawn], theirs: Sequence[Drawn], tolerance: int = 1) -> None:
    assert [one.recipe for one in ours] == [one.recipe for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        pixels, expected = (np.asarray(each.image, dtype=int) for each in (one, other))
        assert np.abs(pixels - expected).max() <= tolerance


def test_different_requests_share_a_batch(tiny_backbone: Backbone, concepts: list[Method], rows: list[int]) -> None:
    """Other concepts, methods, prompts, truncations, samplers, steps, guidance."""
    requests = [
        ([replace(RECIPE, seed=1)], concepts[0]),
        ([replace(RECIPE, prompt="Oil painting of {}", truncation=8, scheduler="ddim")], concepts[1]),
        ([replace(RECIPE, seed=2, steps=4, negative_prompt="a {}")], concepts[2]),
        ([replace(RECIPE, guidance_scale=1.0, settings={"beta": 0.1}), replace(RECIPE, seed=3)], concepts[2]),
    ]
    with ImageQueue(tiny_backbone) as queue:
        with held(queue, concepts[0]):
            tickets = [queue.submit(recipes, {"{}": concept}) for recipes, concept in requests]
        made = [list(ticket) for ticket in tickets]
    assert rows == [2, 9, 9, 9, 2], "one image has 4 steps, and one no guidance"
    for images, (recipes, concept) in zip(made, requests, strict=True):
        same(images, list(draw(tiny_backbone, recipes, {"{}": concept})))


def test_threads_get_their_own_images(tiny_backbone: Backbone, concepts: list[Method]) -> None:
    def recipes(number: int) -> list[ImageRecipe]:
        return [replace(RECIPE, seed=number * 10 + seed) for seed in range(3)]

    with ImageQueue(tiny_backbone, max_batch=4) as queue, ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: list(queue.submit(recipes(n), {"{}": concepts[n % 3]})), range(6)))
        assert queue.pending == 0
    for number, images in enumerate(made):
        same(images, list(draw(tiny_backbone, recipes(number), {"{}": concepts[number % 3]})))


def test_unmixed_requests_give_the_images_of_draw_bit_for_bit(
    tiny_backbone: Backbone, concepts: list[Method], rows: list[int]
) -> None:
    requests = [[replace(RECIPE, seed=10 * n + seed) for seed in range(5)] for n in range(3)]
    with ImageQueue(tiny_backbone, max_batch=3, mix_requests=False) as queue:
        with held(queue, concepts[0]):
            tickets = [queue.submit(recipes, {"{}": concepts[n]}) for n, recipes in enumerate(requests)]
        made = [list(ticket) for ticket in tickets]
    assert rows == [2] + [6] * 9 + [4] * 9, "requests take turns batch by batch"
    for n, (images, recipes) in enumerate(zip(made, requests, strict=True)):
        same(images, list(draw(tiny_backbone, recipes, {"{}": concepts[n]}, batch_size=3)), tolerance=0)


def test_a_short_request_does_not_wait_for_a_long_one(tiny_backbone: Backbone, concepts: list[Method]) -> None:
    done: list[str] = []
    with ImageQueue(tiny_backbone, max_batch=2) as queue:
        with held(queue, concepts[0]):
            long = queue.submit(
                [replace(RECIPE, seed=seed) for seed in range(6)], {"{}": concepts[0]}, lambda _: done.append("long")
            )
            short = queue.submit([RECIPE], {"{}": concepts[1]}, lambda _: done.append("short"))
        list(short)
        list(long)
    assert done[: 2 * RECIPE.steps] == ["long", "short"] * RECIPE.steps


def test_a_finished_image_makes_room_at_once(tiny_backbone: Backbone, concepts: list[Method], rows: list[int]) -> None:
    recipes = [replace(RECIPE, steps=steps) for steps in (1, 4, 2)]
    with ImageQueue(tiny_backbone, max_batch=2) as queue:
        made = list(queue.submit(recipes, {"{}": concepts[0]}))
    assert rows == [4, 4, 4, 2] and [image.recipe for image in made] == recipes, (
        "the last one is finished before the second"
    )


@pytest.mark.parametrize("mixed", [True, False])
def test_cancelled_images_leave_the_batch(
    tiny_backbone: Backbone, concepts: list[Method], rows: list[int], mixed: bool
) -> None:
    with ImageQueue(tiny_backbone, mix_requests=mixed) as queue:
        kept = queue.submit([replace(RECIPE, steps=5)], {"{}": concepts[0]})
        with held(queue, concepts[1]):
            given_up = queue.submit([replace(RECIPE, seed=seed, steps=900) for seed in range(9)], {"{}": concepts[1]})
            assert queue.pending >= 9
        assert len(list(kept)) == 1
        given_up.cancel()
        with pytest.raises(CancelledError):
            list(given_up)
        assert given_up.done and queue.pending == 0
        before = len(rows)
        assert len(list(queue.submit([RECIPE], {"{}": concepts[0]}))) == 1
        assert rows[-1] == 2 and len(rows) - before <= RECIPE.steps + 1


@pytest.mark.parametrize("mixed", [True, False])
def test_nothing_in_progress_is_no_step(tiny_backbone: Backbone, rows: list[int], mixed: bool) -> None:
    """As when all that was in progress has been cancelled."""
    progress = InProgress(tiny_backbone, 8, mixed=mixed)
    progress.step()
    assert not progress and progress.has_room and not rows


def test_an_error_is_that_requests_alone(tiny_backbone: Backbone, concepts: list[Method]) -> None:
    broken = created(
        NeTI, NeTIConfig(), tiny_backbone.frame.num_places, tiny_backbone.word_embedding("toy"), torch.Generator()
    ).eval()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))

    def fail(_: int) -> None:
        raise ZeroDivisionError

    other_model = make_perfusion(tiny_backbone).eval()
    other_model.word.data = other_model.word.data[:-1]  # does not fit: raised inside the shared step
    with ImageQueue(tiny_backbone) as queue:
        with held(queue, concepts[0]):
            fine = [queue.submit([replace(RECIPE, seed=seed)], {"{}": concepts[seed]}) for seed in range(3)]
            wrong = [
                (queue.submit([replace(RECIPE, prompt="a {nobody}")], {"{}": concepts[0]}), UserError),
                (queue.submit([RECIPE], {"{}": broken}), UserError),
                (queue.submit([replace(RECIPE, truncation=10**6)], {"{}": concepts[0]}), UserError),
                (queue.submit([RECIPE], {"{}": concepts[0]}, fail), ZeroDivisionError),
                (queue.submit([RECIPE], {"{}": other_model}), RuntimeError),
            ]
        for ticket, error in wrong:
            with pytest.raises(error):
                list(ticket)
        for seed, ticket in enumerate(fine):
            same(list(ticket), list(draw(tiny_backbone, [replace(RECIPE, seed=seed)], {"{}": concepts[seed]})))


@pytest.mark.parametrize("mixed", [True, False])
def test_out_of_memory_halves_the_batch(
    tiny_backbone: Backbone, concepts: list[Method], rows: list[int], mixed: bool
) -> None:
    def allocate(_: object, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 5:
            torch.empty(2**60)  # a real refusal of the allocator

    tiny_backbone.unet.register_forward_pre_hook(allocate)
    recipes = [replace(RECIPE, seed=seed) for seed in range(8)]
    with ImageQueue(tiny_backbone, mix_requests=mixed) as queue:
        with held(queue, concepts[0]):
            ticket = queue.submit(recipes, {"{}": concepts[0]})
        made = list(ticket)
        tiny_backbone.unet.register_forward_pre_hook(lambda *_: torch.empty(2**60))
        with pytest.raises(UserError, match="not enough memory for one image"):
            list(queue.submit([RECIPE], {"{}": concepts[0]}))
    assert max(row for row in rows if row <= 5) == 4
    same(made, list(draw_without_hooks(recipes, concepts[0], tiny_backbone)))


def draw_without_hooks(recipes: list[ImageRecipe], concept: Method, backbone: Backbone) -> Iterator[Drawn]:
    backbone.unet._forward_pre_hooks.clear()
    return draw(backbone, recipes, {"{}": concept})


def test_sizes_take_turns(tiny_backbone: Backbone, concepts: list[Method], rows: list[int]) -> None:
    recipes = [RECIPE, *(replace(RECIPE, height=32, width=64, seed=seed) for seed in range(3))]
    with ImageQueue(tiny_backbone) as queue:
        with held(queue, concepts[0]):
            ticket = queue.submit(recipes, {"{}": concepts[0]})
        made = list(ticket)
    assert sorted(rows[1:]) == [2] * 3 + [6] * 3
    assert [image.image.size for image in made][1] == (64, 32)


def test_what_is_too_much_is_refused(tiny_backbone: Backbone, concepts: list[Method]) -> None:
    with ImageQueue(tiny_backbone, max_pending=4) as queue:
        with held(queue, concepts[0]):
            ticket = queue.submit([RECIPE] * 3, {"{}": concepts[0]})
            with pytest.raises(QueueFull, match="1 images do not fit beside the 4 that are waiting or being made"):
                queue.submit([RECIPE], {"{}": concepts[0]})
            ticket.cancel()
            again = queue.submit([RECIPE] * 3, {"{}": concepts[0]})
        assert len(list(again)) == 3
        assert list(queue.submit([], {})) == []


def test_closing_ends_what_waits(tiny_backbone: Backbone, concepts: list[Method]) -> None:
    queue = ImageQueue(tiny_backbone)
    tickets = [queue.submit([replace(RECIPE, steps=900)] * 9, {"{}": concept}) for concept in concepts]
    queue.close()
    queue.close()
    for ticket in tickets:
        with pytest.raises(CancelledError, match="closed"):
            next(ticket)
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit([RECIPE], {"{}": concepts[0]})
