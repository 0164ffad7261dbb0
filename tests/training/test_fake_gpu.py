"""Steps of training on a GPU that is not there: devices, autocast, and no place where the CPU waits.

`fake_gpu` says what such a test can see. A step is the task's own: channels-last images, forward pass under autocast,
loss, backward pass, norms and clipping of the gradients, optimiser, averaged weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import yaml
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.testing._internal.distributed.fake_pg import FakeStore

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.config import RunConfig
from convatlas.models.build import build_model
from convatlas.models.detection.yolo import divergence
from convatlas.models.interfaces import FollowsTraining, HasFigures
from convatlas.tasks import new_task
from convatlas.tasks.base import Task
from convatlas.tasks.optimisation import build_optimizer
from convatlas.training.net_callbacks import AveragesWeights, GradientNorms
from convatlas.training.strategies import ChannelsLast, prepare_net
from convatlas.training.sync_batch_norm import SyncBatchNormAnywhere
from fake_gpu import GPU, Watch, differentiate, fake_gpu, moved, on_gpu
from helpers import ROOT, TASKS_DATA


class Mode(NamedTuple):
    """How a net is trained."""

    precision: str
    channels_last: bool
    pieces: int


MODES = {
    "bf16": Mode("bf16-mixed", channels_last=True, pieces=1),
    "fp16 in pieces": Mode("16-mixed", channels_last=False, pieces=2),
    "fp32": Mode("32-true", channels_last=True, pieces=1),
}


def _about(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())["about"]
    return found


NAMES = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")}
OWN_SIZE = {"searched", "timm", "torchvision", "stochastic_depth_timm"}
"""They name a net of another package, or of a search."""
SMALL = sorted(
    name
    for name in NAMES - OWN_SIZE
    if name.endswith("_small") or (_about(name)["input_size"][1] <= 32 and f"{name}_small" not in NAMES)
)
WAITS = {name for name in SMALL if _about(name)["task"] == "detection" and "yolo" not in name}
"""Nets on torchvision's detectors, which pick boxes by their values while they train."""
QUICK = {
    "resnet_cifar": "bf16",
    "alexnet_small": "fp32",
    "fractalnet_small": "fp16 in pieces",
    "stochastic_depth_resnet_small": "bf16",
    "revnet_small": "bf16",
    "irevnet_small": "fp16 in pieces",
    "nasnet_small": "bf16",
    "hyper_convnet": "fp32",
    "googlenet_small": "fp16 in pieces",
    "unet_small": "fp16 in pieces",
    "saunet_small": "bf16",
    "csp_pan_yolo_small": "bf16",
    "retinanet_small": "bf16",
}


def composed(name: str, mode: Mode, *more: str) -> RunConfig:
    task = _about(name)["task"] or "classification"
    options = [
        *(f"model={name}", f"data={TASKS_DATA[task]}", "tracking=none", "recipe.ema_decay=0.9"),
        *(f"trainer.channels_last={str(mode.channels_last).lower()}", "recipe.optimizer.momentum=0.9"),
        *(["data.in_channels=2"] if name.startswith("saunet") else []),
    ]
    with hydra_ready():
        return compose_run([*options, *more], {"variant": "fake", "seeds": [0], "output_dir": "unused"})


def task_of(config: RunConfig) -> Task:
    net = prepare_net(build_model(config.model), config.trainer)
    return new_task(net, config, [str(number) for number in range(config.data.num_classes)], seed=0)


def batch_of(config: RunConfig, images: int = 4) -> dict[str, Any]:
    channels, side = config.data.in_channels, config.data.image_size
    batch: dict[str, Any] = {"images": torch.zeros(images, channels, side, side), "indices": torch.arange(images)}
    if config.data.task == "classification":
        return batch | {"labels": torch.zeros(images, dtype=torch.int64)}
    if config.data.task == "segmentation":
        masks = torch.zeros(images, side, side, dtype=torch.int64)
        return batch | {"masks": masks, "edges": torch.zeros(images, 1, side, side)}
    target = {"boxes": torch.tensor([[1.0, 1.0, 20.0, 20.0], [5.0, 5.0, 30.0, 30.0]]), "labels": torch.tensor([1, 2])}
    return batch | {"targets": [dict(target) for _ in range(images)]}


def averages_of(task: Task) -> AveragedModel:
    """Return the averaged weights that a trainer on an accelerator would keep, still without a place."""
    callback = AveragesWeights(0.9)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    callback.setup(trainer, task, "fit")  # type: ignore[arg-type]
    assert callback._average_model is not None
    assert {p.device.type for p in callback._average_model.parameters()} == {"meta"}
    return callback._average_model


def step(task: Task, mode: Mode, batches: list[dict[str, Any]], averages: AveragedModel) -> None:
    """Make one optimiser step as the trainer does."""
    optimizer = build_optimizer(task.net, task.config.recipe)
    norms = GradientNorms(task.net)
    plugin = None if mode.precision == "32-true" else MixedPrecision(mode.precision, "cuda", _scaler(mode))  # type: ignore[arg-type]
    scale = torch.full((), 1024.0, device=GPU)
    for batch in batches:
        if isinstance(task.net, FollowsTraining):
            task.net.begin_step(3, 10, seed=1)
        if mode.channels_last:
            ChannelsLast().on_train_batch_start(None, task, batch, 0)  # type: ignore[arg-type]
        if plugin is None:
            loss = task.training_step(batch, 0)
        else:
            with plugin.forward_context():
                loss = task.training_step(batch, 0)
        assert loss.device == GPU
        assert loss.dtype == torch.float32
        (loss * scale / len(batches) if mode.precision == "16-mixed" else loss / len(batches)).backward()
        if isinstance(task.net, HasFigures):
            task.net.step_figures()
    norms.on_before_optimizer_step(None, task, optimizer)  # type: ignore[arg-type]
    torch.nn.utils.clip_grad_norm_(task.net.parameters(), 1.0)
    optimizer.step()
    for _ in range(4):
        averages.update_parameters(task)
    for parameter in task.net.parameters():
        assert parameter.grad is None or (parameter.grad.device, parameter.grad.dtype) == (GPU, parameter.dtype)


def _scaler(mode: Mode) -> Any:
    return torch.amp.GradScaler("cpu", enabled=False) if mode.precision == "16-mixed" else None


@contextmanager
def on_the_gpu(task: Task, *others: nn.Module) -> Iterator[Watch]:
    with fake_gpu() as (fake, watch):
        for module in (task.train(), *others):
            moved(module, fake)
        task._device = GPU
        yield watch


def check(name: str, mode: Mode) -> None:
    config = composed(name, mode)
    task = task_of(config)
    averages = averages_of(task)
    with on_the_gpu(task, averages.module) as watch:
        step(task, mode, [on_gpu(batch_of(config)) for _ in range(mode.pieces)], averages)
    assert bool(watch.waits) == (name in WAITS), watch.waits


@pytest.mark.parametrize(("name", "mode"), QUICK.items())
def test_a_step_on_a_gpu_is_possible_and_waits_for_nothing(name: str, mode: str) -> None:
    check(name, MODES[mode])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bf16", "fp16 in pieces"])
@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_every_net_in_every_mode(name: str, mode: str) -> None:
    check(name, MODES[mode])


# ---- what has gone wrong, or would have -----------------------------------------------------------------------------


def test_autocast_bans_what_the_loss_of_a_place_must_not_use() -> None:
    """The fake GPU sees it: plain binary cross-entropy is refused under CUDA's autocast, `divergence` is not."""
    with fake_gpu(), torch.autocast("cuda", dtype=torch.bfloat16):
        values = torch.zeros(2, device=GPU)
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            torch.nn.functional.binary_cross_entropy(values, values)
        assert divergence(values, values).dtype == torch.float32


def test_two_devices_in_one_operation_are_refused() -> None:
    with fake_gpu(), pytest.raises(RuntimeError, match="devices"):
        torch.zeros(2, device=GPU) + torch.zeros(2)


@pytest.mark.parametrize(
    ("waits", "place"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.tolist(), "item"),
        (lambda x: bool(x.any()), "item"),
        (lambda x: x[x > 0], "mask"),
        (lambda x: x.nonzero(), "nonzero"),
    ],
)
def test_every_way_to_wait_for_a_gpu_is_noticed(waits: Any, place: str) -> None:
    with fake_gpu() as (_, watch):
        waits(torch.zeros(1, device=GPU))
    assert set(watch.waits) == {place}


def test_gradients_of_the_walk_are_those_of_autograd() -> None:
    """`differentiate` against the engine, on the CPU with values: broadcast, reused and unused tensors."""
    first, second = torch.randn(3, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    third = torch.randn(2, requires_grad=True)

    def loss() -> Tensor:
        product = first * second
        return (product @ product.T).tanh().sum() + torch.nn.functional.linear(first, second[None], third[:1]).sum()

    expected = torch.autograd.grad(loss(), [first, second, third])
    for found, right in zip(differentiate([loss()], [None], [first, second, third]), expected, strict=True):
        torch.testing.assert_close(found, right)
    differentiate([loss()], [None], None)
    torch.testing.assert_close(first.grad, expected[0])


def test_batch_normalisation_over_processes_sends_no_tensor_of_the_cpu() -> None:
    """`Watch` looks at every collective of two processes, of which the other is not there either."""
    config = composed("resnet_cifar", MODES["bf16"])
    task = task_of(config)
    SyncBatchNormAnywhere(on_gpu=True).apply(task)
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with on_the_gpu(task) as watch:
            task.training_step(on_gpu(batch_of(config)), 0).backward()
            with pytest.raises(AssertionError, match="a tensor on the CPU"):
                dist.all_reduce(torch.zeros(1))
    finally:
        dist.destroy_process_group()
    assert set(watch.waits) <= {"mask"}  # torch's own, for processes without images
