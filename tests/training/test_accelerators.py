"""What a run does on a GPU that it need not do on a CPU: waiting before a clock is read, devices, rounding, peaks."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn

from convatlas.core import processes
from convatlas.core.accelerators import peak_flops
from convatlas.core.processes import rank_zero_first, uses_gpu
from convatlas.models.blocks import blocks_of
from convatlas.models.build import build_model
from convatlas.tasks import new_task
from convatlas.training import results
from convatlas.training.recorder import Recorder
from convatlas.training.strategies import device_of, precision_of
from convatlas.training.trainer import build_tester

CLASSES = [str(number) for number in range(10)]


def new_recorder() -> Recorder:
    return Recorder("test", 1, lambda _: None, show=False)


def test_a_clock_is_read_once_the_gpu_has_done_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of the GPU is here a hundredth of a second, which the training's seconds must have."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    queued = [0.0]

    def synchronize() -> None:
        time.sleep(queued[0])
        queued[0] = 0.0

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    kept = new_recorder()
    nobody: Any = None
    kept.on_train_start(nobody, nobody)
    queued[0] = 0.05
    kept.on_validation_start(nobody, nobody)
    assert kept.state_dict()["seconds"] >= 0.05
    kept.on_validation_end(nobody, nobody)
    assert kept.parts["validation"] < 0.05


def test_the_peak_of_the_gpu_s_memory_is_kept_over_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    kept = new_recorder()
    trainer: Any = SimpleNamespace(current_epoch=0, global_step=1, callback_metrics={}, is_global_zero=False)
    kept.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    resumed = new_recorder()
    resumed.load_state_dict(kept.state_dict())
    assert resumed.peak_memory == 123


def test_latency_is_taken_where_the_net_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a test Lightning has put the net back on the CPU; a compiled net is measured as it is written."""
    places: list[Any] = []

    class Net(nn.Linear):
        def to(self, device: Any) -> Any:
            places.append(device.type)
            return self

        def cpu(self) -> Any:
            places.append("cpu")
            return self

    def measured(net: nn.Module, shape: Any) -> float:
        places.append((net._compiled_call_impl, torch.is_autocast_enabled("cpu"), next(net.parameters()).dtype))
        return 0.5

    monkeypatch.setattr(results, "measure_latency", measured)
    net = Net(2, 2)
    net._compiled_call_impl = compiled = lambda: None
    assert results.latency_on(net, (1, 2, 2), torch.device("cuda", 0), "32-true") == 0.5
    assert places == ["cuda", (None, False, torch.float32), "cpu"]
    assert net._compiled_call_impl is compiled
    for precision, expected in (
        ("bf16-mixed", (None, True, torch.float32)),
        ("64-true", (None, False, torch.float64)),
    ):
        places.clear()
        results.latency_on(net, (1, 2, 2), torch.device("cpu"), precision)
        assert places == ["cpu", expected, "cpu"]
        assert next(net.parameters()).dtype == torch.float32


def test_sums_of_losses_are_copies(compose: Any) -> None:
    """The next replay of a CUDA graph overwrites a loss that was computed within it."""
    config = compose("model=resnet_cifar", "model.depth=8", "model.width=4")
    task = new_task(build_model(config.model), config, CLASSES, seed=0)
    loss = torch.tensor(2.0)
    task.losses = lambda _: {"loss": loss}  # type: ignore[method-assign]
    task.training_step({}, 0)
    loss.fill_(7.0)
    task.training_step({}, 1)
    loss.fill_(0.0)
    assert float(task._loss_sums["loss"]) == 9.0


@pytest.mark.parametrize(("precision", "rounds"), [("32-true", False), ("tf32-true", True), ("bf16-mixed", False)])
def test_float32_is_rounded_to_tf32_on_request_alone(compose: Any, precision: str, rounds: bool) -> None:
    machine = compose(f"trainer.precision={precision}").trainer
    try:
        assert precision_of(machine) == ("32-true" if rounds else precision)
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == rounds
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def test_a_mac_computes_on_its_processor(compose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its GPU has no float64, as the sums of metrics need it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine = compose("trainer=ddp", "trainer.devices=1").trainer
    assert machine.accelerator == "auto"
    assert device_of(machine) == "cpu"
    assert isinstance(build_tester(machine).accelerator, pl.accelerators.CPUAccelerator)


def test_asking_for_a_gpu_leaves_a_process_that_can_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch asks the driver otherwise, and seeds side by side are processes forked after that."""
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1")
    assert uses_gpu("auto")


def test_validation_makes_no_table(compose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("model=resnet_cifar", "model.depth=8", "model.width=4")
    task = new_task(build_model(config.model), config, CLASSES, seed=0).eval()
    batch = {"images": torch.zeros(3, 1, 32, 32), "indices": torch.arange(3), "labels": torch.arange(3)}
    task.test_step(batch, 0)
    [columns] = task._tested_batches
    assert {name: type(column) for name, column in columns.items()} == dict.fromkeys(columns, np.ndarray)
    assert (columns["probabilities"].shape, columns["probabilities"].dtype) == ((3, 10), np.float32)

    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(type(task), "columns", refuse)
    task.validation_step(batch, 0)
    with pytest.raises(AssertionError):
        task.test_step(batch, 0)


def test_an_error_of_rank_zero_lets_the_others_go(monkeypatch: pytest.MonkeyPatch) -> None:
    barriers: list[str] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "barrier", lambda: barriers.append("reached"))
    monkeypatch.setattr(processes, "rank", lambda: 0)
    with pytest.raises(KeyError), rank_zero_first("cpu"):
        raise KeyError
    assert barriers == ["reached"]
    monkeypatch.setattr(processes, "rank", lambda: 1)
    with rank_zero_first("cpu"):
        assert barriers == ["reached", "reached"]
    assert len(barriers) == 2


# ---- peaks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H200", "bf16-mixed", 989),
        ("NVIDIA A100-SXM4-80GB", "tf32-true", 156),
        ("Tesla T4", "32-true", 8.1),
        ("NVIDIA L40S", "16-mixed", 362),
        ("NVIDIA L4", "16-mixed", 121),
    ],
)
def test_the_peak_of_a_gpu_is_its_data_sheet_s(name: str, precision: str, teraflops: float) -> None:
    assert peak_flops(name, precision) == teraflops * 1e12


@pytest.mark.parametrize(
    ("name", "precision"),
    [(None, "32-true"), ("Tesla T4", "tf32-true"), ("Some GPU", "bf16-mixed"), ("NVIDIA H200", "64-true")],
)
def test_a_peak_that_nobody_states_is_none(name: str | None, precision: str) -> None:
    assert peak_flops(name, precision) is None


def test_the_share_of_the_peak_counts_three_forward_passes(compose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 images in 2 s, 10^9 multiply-adds each: 6 * 10^9 * 500 FLOP/s of 989 * 10^12."""
    config = compose("trainer.precision=bf16-mixed")
    monkeypatch.setattr(results, "uses_gpu", lambda _: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(results, "environment", lambda _: {})
    kept = new_recorder()
    kept.rows, kept.epoch_seconds, kept.peak_memory = [{"epoch": 1.0, "step": 10.0, "val/accuracy": 0.5}], [2.0], 77
    made = results.build_record(
        config,
        0,
        work=SimpleNamespace(identity={}),  # type: ignore[arg-type]
        recorder=kept,
        model="net",
        fingerprint="",
        monitor="val/accuracy",
        mode="max",
        test={},
        costs={"macs": 10**9},
        test_seconds=1.0,
        images_per_step=100,
    ).timing
    assert (made.device, made.images_per_second, made.peak_memory_bytes) == ("NVIDIA H200", 500, 77)
    assert made.mfu == pytest.approx(6e9 * 500 / 989e12)


# ---- blocks ---------------------------------------------------------------------------------------------------------


def test_blocks_are_small_whole_and_apart(compose: Any) -> None:
    net = build_model(compose("model=resnet18", "data=cifar10").model)
    blocks = blocks_of(net)
    whole = sum(p.numel() for p in net.parameters())
    owned = [id(p) for block in blocks for p in block.parameters()]
    assert len(owned) == len(set(owned))
    assert sum(p.numel() for block in blocks for p in block.parameters()) > 0.95 * whole
    large = [b for b in blocks if sum(p.numel() for p in b.parameters()) > whole / 8]
    assert all(not list(b.children()) for b in large)  # single layers alone
    assert len(blocks) >= 8


def test_layers_that_share_a_parameter_are_in_one_block_or_in_none() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    net = nn.ModuleDict({"a": first, "b": nn.ModuleList([second, nn.Linear(8, 8)]), "c": nn.Linear(8, 8)})
    assert blocks_of(net) == [net["b"][1], net["c"]]  # type: ignore[index]
