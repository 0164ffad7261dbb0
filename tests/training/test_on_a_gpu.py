"""What only a GPU can show: `make test-gpu`. Small, so that all of it takes about two minutes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from test_fake_gpu import MODES, QUICK, batch_of, composed, task_of

from convatlas.core.errors import UserError
from convatlas.tasks.base import Task
from convatlas.tasks.classification import ClassificationTask
from convatlas.training.run import train
from helpers import TASKS_DATA, source_options, train_outside

pytestmark = pytest.mark.gpu
GPU = ("trainer=gpu", "trainer.workers=0", "recipe.epochs=2", "recipe.batch_size=64", "trainer.limit_batches=4")
NET = ("model=resnet_cifar", "model.depth=8")


def on_gpu(value: Any) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.cuda(), value)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_three_steps_lower_no_net_to_nan(name: str, dtype: torch.dtype) -> None:
    """Forward pass, loss, backward pass and optimiser of every family, for real."""
    torch.manual_seed(0)
    config = composed(name, MODES["bf16"])
    task = task_of(config).cuda().train()
    batch = batch_of(config)
    batch["images"] = torch.rand_like(batch["images"])
    batch = on_gpu(batch)
    optimizer = torch.optim.SGD(task.net.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    for number in range(3):
        if hasattr(task.net, "begin_step"):
            task.net.begin_step(number, 3, seed=number)
        with torch.autocast("cuda", dtype=dtype):
            loss = task.training_step(batch, number)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.isfinite(loss)


@pytest.mark.parametrize("task", TASKS_DATA)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_run_of_each_task_is_whole(compose: Any, prepared: dict[str, Path], task: str, precision: str) -> None:
    net = {"classification": "resnet_cifar", "detection": "csp_pan_yolo_small", "segmentation": "unet_small"}[task]
    name = TASKS_DATA[task]
    data = (f"data={name}", f"data.prepared={prepared[name]}", *source_options(prepared[name]))
    recipe = () if task == "classification" else (f"recipe={task}",)
    options = (*GPU, *data, *recipe, f"model={net}", f"trainer.precision={precision}", "recipe.batch_size=8")
    (folder,) = train(compose(*options, "recipe.ema_decay=0.9"), strict=True)
    timing = json.loads((folder / "timing.json").read_text())
    assert timing["device"] == torch.cuda.get_device_name()
    assert timing["peak_memory_bytes"] > 0
    assert 0 < timing["latency_seconds"] < 1
    assert timing["images_per_second"] > 0
    assert len(pd.read_parquet(folder / "predictions.parquet")) > 0


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_net_trains_and_its_losses_are_its_own(compose: Any, mode: str) -> None:
    """With CUDA graphs a sum of losses that was no copy would be overwritten by the next replay."""
    options = (*GPU, *NET, "trainer.precision=32-true")
    (plain,) = train(compose(*options, folder="plain"), strict=True)
    (compiled,) = train(compose(*options, f"trainer.compile={mode}", folder="compiled"), strict=True)
    one, two = (pd.read_csv(folder / "history.csv")["train/loss"] for folder in (plain, compiled))
    assert one.tolist() == pytest.approx(two.tolist(), rel=1e-2)


def test_a_killed_training_goes_on(compose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*GPU, *NET, "trainer.checkpoint_every_n_steps=1", "trainer.precision=32-true")
    (undisturbed,) = train(compose(*options, folder="undisturbed"), strict=True)
    losses, calls = ClassificationTask.losses, [0]

    def fail_at_step_6(self: Task, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            raise MemoryError
        return losses(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(ClassificationTask, "losses", fail_at_step_6)
    with pytest.raises(MemoryError):
        train(compose(*options, folder="broken"), strict=True)
    monkeypatch.setattr(ClassificationTask, "losses", losses)
    (resumed,) = train(compose(*options, folder="broken"), strict=True)
    one, two = (pd.read_csv(folder / "history.csv")["train/loss"] for folder in (undisturbed, resumed))
    assert one.tolist() == pytest.approx(two.tolist(), rel=1e-4)


def test_seeds_train_side_by_side(compose: Any) -> None:
    config = compose(*GPU, *NET, "trainer.seeds_at_once=2", seeds=(0, 1))
    assert [folder.name for folder in train(config, strict=True)] == ["seed=0", "seed=1"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_train_by_nccl(tmp_path: Path, prepared_digits: Path, strategy: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    options = ["convatlas.train", f"trainer={strategy}", "trainer.accelerator=gpu", *NET, "recipe.epochs=1"]
    train_outside(
        [*torchrun, *options, "tracking=none", f"data.prepared={prepared_digits}", "output_dir=run"], tmp_path
    )
    assert (tmp_path / "run" / "seed=0" / "metrics.json").exists()


def test_more_gpus_than_there_are_is_told(compose: Any) -> None:
    with pytest.raises(UserError, match=r"trainer\.devices=\d+ is more than the GPUs"):
        train(compose("trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=64"), strict=True)
