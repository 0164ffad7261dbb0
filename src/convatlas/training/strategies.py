"""How Lightning divides a training among processes, its plugins, and the layout of memory; see `conf/trainer`."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch import nn

from convatlas.core.config import RunConfig, TrainerConfig
from convatlas.core.processes import uses_gpu
from convatlas.models.interfaces import leaves_gradients_out
from convatlas.training.checkpoints import WholeCheckpointIO
from convatlas.training.sync_batch_norm import SyncBatchNormAnywhere

__all__ = [
    "ChannelsLast",
    "build_plugins",
    "build_strategy",
    "device_of",
    "precision_of",
    "prepare_net",
    "start_autograd",
]


def build_strategy(config: RunConfig, net: nn.Module) -> str | Strategy:
    """Return Lightning's strategy.

    DDP looks for weights without gradient only where a net may leave some out. FSDP is PyTorch's second form of it,
    `torch.distributed.fsdp.fully_shard`, which `Task.configure_model` applies; its checkpoints are whole, as others.
    """
    machine = config.trainer
    if machine.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=machine.processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    if machine.strategy == "ddp":
        return "ddp_find_unused_parameters_true" if leaves_gradients_out(net) else "ddp"
    return "auto"


def device_of(machine: TrainerConfig) -> str:
    """Return Lightning's accelerator: a GPU of CUDA or the CPU.

    Lightning's own "auto" takes Apple's GPU as well, which has no float64, as sums of metrics need it.
    """
    return "gpu" if uses_gpu(machine.accelerator) else "cpu"


def precision_of(machine: TrainerConfig) -> Any:
    """Return Lightning's precision, and say whether this process's float32 products may be rounded to TF32.

    By default PyTorch allows it in convolutions and not in matrix multiplications: here both do or neither.
    """
    rounded = machine.precision == "tf32-true"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = rounded
    return "32-true" if rounded else machine.precision


def build_plugins(machine: TrainerConfig) -> list[Any]:
    """Return Lightning's plugins: whole checkpoints, batch norm over all processes, SLURM without Lightning's resuming.

    Lightning's own requeueing writes a second kind of checkpoint, from which our data module could not resume.
    """
    plugins: list[Any] = [WholeCheckpointIO()]
    if machine.sync_batchnorm:
        plugins.append(SyncBatchNormAnywhere(on_gpu=uses_gpu(machine.accelerator)))
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def start_autograd() -> None:
    """Start autograd's engine before torch.compile brings in devices that the engine would start threads for.

    On the CPU it needs none, and a process with such threads cannot fork seeds that train, as a later job of a
    `--multirun` does.
    """
    torch.ones((), requires_grad=True).backward()


def prepare_net(net: nn.Module, machine: TrainerConfig) -> nn.Module:
    """Return the net for this machine; names and values of its weights stay."""
    if machine.channels_last and machine.strategy != "fsdp":  # FSDP divides contiguous kernels alone
        net = net.to(memory_format=torch.channels_last)
    if machine.strategy == "fsdp" and machine.sync_batchnorm:  # Lightning does it in its other strategies
        net = SyncBatchNormAnywhere(on_gpu=uses_gpu(machine.accelerator)).apply(net)
    if machine.compile is not None:
        if not uses_gpu(machine.accelerator):
            start_autograd()
        net.compile(mode=machine.compile)
    return net


class ChannelsLast(pl.Callback):
    """Lays the images of every batch out as the net's kernels are."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lay out a batch of training."""
        batch["images"] = batch["images"].contiguous(memory_format=torch.channels_last)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Lay out a batch of validation."""
        batch["images"] = batch["images"].contiguous(memory_format=torch.channels_last)

    on_test_batch_start = on_validation_batch_start
