"""The small parts of the trainer: losses, signals, the optimizer, the memory estimate, validation grids."""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from frames import created
from perfusion_concepts import make_perfusion
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.memory import estimate_memory
from neti.models.conditioning.tokens import tokenize
from neti.models.generation.sampling import NaNImageError
from neti.models.methods import METHODS, NeTI, NeTIConfig
from neti.training.coach.objective import Batch, Objective
from neti.training.coach.optimizer import Diverged, Losses, check_saved, make_optimizer
from neti.training.coach.stop import GracefulStop
from neti.training.config.options import LRSchedule
from neti.training.config.run import EvalConfig, OptimConfig
from neti.training.evaluation.validation import validation_grids
from neti.utils.errors import first_line


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make_method(backbone: Backbone) -> NeTI:
    return created(
        NeTI,
        NeTIConfig(),
        backbone.frame.num_places,
        backbone.word_embedding("teddy"),
        torch.Generator().manual_seed(0),
    )


def test_losses_are_means_and_come_once(accelerator: Accelerator) -> None:
    losses = Losses(accelerator, nn.Linear(2, 2))
    losses.add(1, [torch.tensor(1.0), torch.tensor(3.0)], 0.5)
    losses.add(2, [torch.tensor(5.0), torch.tensor(6.0)], 0.25)
    assert losses.read() == [(1, 2.0, 0.5), (2, 5.5, 0.25)]
    assert losses.read() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda optimizer, schedule: optimizer["state"].clear(),
        lambda optimizer, schedule: optimizer["state"][1].pop("exp_avg_sq"),
        lambda optimizer, schedule: optimizer["state"][0].update(exp_avg=torch.zeros(3)),
        lambda optimizer, schedule: optimizer["state"].update({1: None}),
        lambda optimizer, schedule: optimizer["param_groups"].clear(),
        lambda optimizer, schedule: optimizer["param_groups"][0].update(lr="x"),
        lambda optimizer, schedule: schedule.update(last_epoch="x"),
        lambda optimizer, schedule: schedule.update(base_lrs=[]),
        lambda optimizer, schedule: schedule.pop("last_epoch"),
    ],
)
def test_a_saved_optimizer_of_another_shape_is_refused(change: Callable[..., object]) -> None:
    def parts() -> tuple[torch.optim.AdamW, LambdaLR]:
        optimizer = torch.optim.AdamW(nn.Linear(2, 3).parameters())
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)

    trained, schedule = parts()
    for parameter in trained.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    trained.step()
    schedule.step()
    saved = copy.deepcopy((trained.state_dict(), schedule.state_dict()))
    check_saved(*saved, *parts())
    change(*saved)
    with pytest.raises((ValueError, KeyError, TypeError)) as caught:
        check_saved(*saved, *parts())
    assert "\n" not in first_line(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_bad_loss_is_named(accelerator: Accelerator, value: float) -> None:
    losses = Losses(accelerator, nn.Linear(2, 2))
    losses.add(1, [torch.tensor(1.0)], 0.5)
    losses.add(2, [torch.tensor(value)], 0.5)
    losses.add(3, [torch.tensor(math.nan)], 0.5)
    with pytest.raises(Diverged, match=f"at step 2: the loss is {value}"):
        losses.read()


def test_bad_parameters_are_noticed_under_a_good_loss(accelerator: Accelerator) -> None:
    trained = nn.Linear(2, 2)
    losses = Losses(accelerator, trained)
    with torch.no_grad():
        trained.bias[1] = math.inf
    losses.add(4, [torch.tensor(1.0)], 0.5)
    with pytest.raises(Diverged, match="at step 4: the parameters"):
        losses.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_a_request_and_the_handlers_come_back(
    number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    inherited = signal.signal(number, signal.default_int_handler)  # nohup has a hang-up ignored, and so do its children
    request.addfinalizer(lambda: signal.signal(number, inherited))
    before = signal.getsignal(number)
    with GracefulStop() as stop:
        assert not stop.asked()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # an echo of the first
        assert stop.asked() and stop.received == number
    assert signal.getsignal(number) is before


def test_a_second_interrupt_acts_at_once_and_a_second_warning_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neti.training.coach.stop._ECHO_SECONDS", 0.0)
    with GracefulStop() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)  # SLURM's limit, while the run is being saved
        assert stop.received == signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_closed_terminal_means_nothing_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulStop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_wish_stops_in_any_thread() -> None:
    wishes = [False, True]
    received = []

    def work() -> None:
        with GracefulStop(lambda: wishes.pop(0)) as stop:
            received.extend([stop.asked(), stop.asked(), stop.asked(), stop.received])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert received == [False, True, True, signal.SIGINT]


@pytest.mark.parametrize("schedule", list(LRSchedule))
def test_schedules_count_optimizer_steps(tiny_backbone: Backbone, schedule: LRSchedule) -> None:
    config = OptimConfig(lr_scheduler=schedule, lr_warmup_steps=4, max_train_steps=10, adam_beta1=0.8)
    optimizer, rates = make_optimizer(make_method(tiny_backbone), config, learning_rate=0.01)
    seen = []
    for _ in range(10):
        seen.append(rates.get_last_lr()[0])
        optimizer.step()
        rates.step()
    assert optimizer.defaults["betas"] == (0.8, 0.999)
    assert seen[4] == pytest.approx(0.01)
    assert (seen[0] == 0.01) if schedule is LRSchedule.constant else (seen[:3] == pytest.approx([0, 0.0025, 0.005]))
    assert (seen[9] == 0.01) == schedule.value.startswith("constant")


@pytest.mark.parametrize(("name", "checkpointing"), [("neti", False), ("neti", True), ("textual_inversion", False)])
def test_estimated_activations_are_those_a_real_step_keeps(
    tiny_backbone: Backbone, name: str, checkpointing: bool
) -> None:
    """The estimate's fake models keep for the backward pass what the real ones do."""
    method = created(
        METHODS[name],
        METHODS[name].config_class(),
        tiny_backbone.frame.num_places,
        tiny_backbone.word_embedding("teddy"),
    )
    estimated = estimate_memory(
        tiny_backbone,
        trained=sum(parameter.numel() for parameter in method.parameters()),
        text_rows=16 if name == "neti" else 1,
        dtype=torch.float32,
        batch_size=2,
        latent_side=8,
        gradient_checkpointing=checkpointing,
    )
    weights = [p for part in (tiny_backbone.unet, tiny_backbone.text_encoder) for p in part.parameters()]
    assert estimated.frozen == 4 * sum(p.numel() for p in weights)
    assert estimated.trained == 16 * sum(p.numel() for p in method.parameters())

    objective = Objective(method, tiny_backbone, gradient_checkpointing=checkpointing)
    batch = Batch(
        latents=torch.zeros(2, 4, 8, 8),
        noise=torch.zeros(2, 4, 8, 8),
        timesteps=torch.tensor([1, 2]),
        tokens=tokenize(tiny_backbone.tokenizer, ["a {}"] * 2, ["{}"]),
        generators=[torch.Generator() for _ in range(2)],
    )
    own = {p.untyped_storage().data_ptr() for p in weights}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(batch)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert 0 <= real - estimated.activations < 2**20  # what the mapper itself keeps, the same with checkpointing


GRIDS = EvalConfig(
    validation_prompts=("A photo of a {}", "A {} on a beach"),
    num_validation_images=2,
    validation_seeds=(1, 2),
    num_denoising_steps=2,
)


def last_tile(grid: Image.Image) -> bytes:
    return grid.crop((grid.width - 60, grid.height - 60, grid.width, grid.height)).tobytes()


def test_validation_grids_for_each_truncation(tiny_backbone: Backbone) -> None:
    method = make_method(tiny_backbone).train()
    config = replace(GRIDS, validation_truncations=(None, 1))
    grids = dict(validation_grids(tiny_backbone, method, "<toy>", config, step=9))
    assert list(grids) == [(("truncation", None),), (("truncation", 1),)]
    assert len({last_tile(grid) for grid in grids.values()}) == 2
    assert method.training
    none = EvalConfig(validation_prompts=None)
    assert list(validation_grids(tiny_backbone, method, "<toy>", none, step=9)) == []


def test_validation_grids_for_each_setting(tiny_backbone: Backbone) -> None:
    """In the middle of a training they show what inference will, at its own beta too."""
    method = make_perfusion(tiny_backbone).train()
    config = replace(GRIDS, validation_settings={"beta": (0.3, 0.7)})
    shown = [last_tile(grid) for _, grid in validation_grids(tiny_backbone, method, "<toy>", config, step=9)]
    plain = [last_tile(grid) for _, grid in validation_grids(tiny_backbone, method, "<toy>", GRIDS, step=9)]
    assert method.training and method.beta == 0.75
    again = [last_tile(grid) for _, grid in validation_grids(tiny_backbone, method.eval(), "<toy>", config, step=9)]
    assert shown == again and shown[0] != shown[1]
    assert plain == shown[1:], "0.7 is what it is drawn with unless something else is asked for, and not what trains it"


def test_validation_never_shows_a_black_image(tiny_backbone: Backbone) -> None:
    method = make_method(tiny_backbone)
    with torch.no_grad():
        method.mapper.output_layer.bias.fill_(math.nan)
    config = EvalConfig(num_denoising_steps=1)
    with pytest.raises(NaNImageError):
        list(validation_grids(tiny_backbone, method, "<toy>", config, step=9))
