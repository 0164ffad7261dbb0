"""What a run asks of its machine: refused where machine, net and options do not go together, with the remedy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from torch import nn

from convatlas.core.config import RunConfig, TrainerConfig
from convatlas.core.errors import UserError
from convatlas.core.processes import launched, uses_gpu
from convatlas.models.interfaces import FollowsTraining, is_reversible

__all__ = ["check_supported", "with_scaled_rate"]


def check_supported(config: RunConfig, net: nn.Module) -> None:
    """Refuse what cannot be trained as it is configured, before anything is written.

    Raises:
        UserError: the first reason that is found, with its remedy.
    """
    machine = config.trainer
    for reason in (*_of_the_processes(machine), *_of_the_options(config), *_of_the_net(machine, net)):
        raise UserError(reason)


def _of_the_processes(machine: TrainerConfig) -> Iterator[str]:
    import torch

    gpus = torch.cuda.device_count()
    if machine.accelerator == "gpu" and gpus == 0:
        yield "trainer.accelerator=gpu: torch finds no GPU here; take trainer=cpu or trainer.accelerator=auto."
    if uses_gpu(machine.accelerator) and machine.devices > gpus:
        yield f"trainer.devices={machine.devices} is more than the GPUs of this machine; set it to {gpus} or less."
    others = launched()
    if others is not None and others.processes != machine.devices * machine.num_nodes:
        yield (
            f"{others.launcher} started {others.processes} processes but trainer.devices={machine.devices} and "
            f"trainer.num_nodes={machine.num_nodes} ask for {machine.devices * machine.num_nodes}; make them agree."
        )
    if others is None and machine.num_nodes > 1:
        yield (
            f"trainer.num_nodes={machine.num_nodes} needs a launcher on each machine; start the command "
            "with torchrun or, under SLURM, with srun."
        )


def _of_the_options(config: RunConfig) -> Iterator[str]:
    machine, recipe = config.trainer, config.recipe
    pieces = machine.devices * machine.num_nodes * machine.accumulate_grad_batches
    if recipe.batch_size % pieces:
        yield (
            f"recipe.batch_size={recipe.batch_size} is the batch of one step; with trainer.accumulate_grad_batches="
            f"{machine.accumulate_grad_batches} it must be a multiple of {pieces}."
        )
    if machine.precision == "tf32-true" and not uses_gpu(machine.accelerator):
        yield "trainer.precision=tf32-true is rounding by a GPU; take trainer.precision=32-true."
    if machine.precision == "16-mixed" and not uses_gpu(machine.accelerator):
        yield "trainer.precision=16-mixed needs a GPU; take trainer.precision=bf16-mixed."
    if machine.compile is not None and not uses_gpu(machine.accelerator) and shutil.which("g++") is None:
        yield "trainer.compile needs the compiler g++ on the CPU; install it, or set trainer.compile=null."
    if machine.resident is True and config.data.storage == "shards":
        yield (
            "trainer.resident=true: the images of data.storage=shards are encoded, and decoded one by one on the "
            "CPU; set trainer.resident=auto."
        )
    if machine.strategy != "fsdp":
        return
    if machine.devices * machine.num_nodes == 1:
        yield "trainer.strategy=fsdp divides a net among processes; set trainer.devices to 2 or more."
    if machine.precision not in {"32-true", "tf32-true", "bf16-mixed"}:
        yield f"trainer.strategy=fsdp has no trainer.precision={machine.precision}; take 32-true or bf16-mixed."
    if machine.compile is not None:
        yield "trainer.strategy=fsdp does not go with trainer.compile; set trainer.compile=null or take trainer=ddp."
    if recipe.ema_decay is not None:
        yield "trainer.strategy=fsdp does not average weights; set recipe.ema_decay=null or take trainer=ddp."
    if recipe.gradient_norms:
        yield "trainer.strategy=fsdp has no whole gradients; set recipe.gradient_norms=false or take trainer=ddp."


def _of_the_net(machine: TrainerConfig, net: nn.Module) -> Iterator[str]:
    follows = isinstance(net, FollowsTraining)
    reversible = is_reversible(net)
    name = type(net).__name__
    if machine.compile is not None and follows:
        yield f"trainer.compile: {name} changes with every step and would be compiled anew; set trainer.compile=null."
    if machine.compile is not None and reversible:
        yield (
            f"trainer.compile: compiled, the reversible layers of {name} keep their activations, "
            "which they are there to spare; set trainer.compile=null."
        )
    if machine.strategy == "fsdp" and follows:
        yield f"trainer.strategy=fsdp: {name} leaves gradients out in some steps; take trainer=ddp."
    if machine.strategy == "fsdp" and reversible:
        yield f"trainer.strategy=fsdp: the reversible layers of {name} need whole weights going back; take trainer=ddp."


def with_scaled_rate(config: RunConfig) -> RunConfig:
    """Return the run with the learning rate that is used: that of the recipe, or scaled with the batch size."""
    reference = config.trainer.scale_lr_from
    if reference is None:
        return config
    recipe = config.recipe
    if "lr" not in recipe.optimizer:
        raise UserError("trainer.scale_lr_from scales recipe.optimizer.lr, which is not there; give it a value.")
    optimizer = {**recipe.optimizer, "lr": recipe.optimizer["lr"] * recipe.batch_size / reference}
    return config.model_copy(update={"recipe": recipe.model_copy(update={"optimizer": optimizer})})
