"""Which process of a distributed training this is, whoever started it: torchrun, SLURM, or Lightning itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def rank() -> int:
    """Return the global rank; 0 in a single process and in the process from which Lightning starts the others."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ and (name != "SLURM_PROCID" or int(os.environ.get("SLURM_NTASKS", "1")) > 1):
            return int(os.environ[name])
    return 0


def uses_gpu(accelerator: str) -> bool:
    """Say whether a run with this `trainer.accelerator` computes on a GPU."""
    import torch

    return accelerator != "cpu" and torch.cuda.is_available()


@contextmanager
def rank_zero_first(accelerator: str) -> Iterator[None]:
    """Let the other processes wait until rank zero has left the block.

    Under torchrun all processes start at once, and what rank zero decides from files the others must find decided.
    Lightning starts its own processes after that point, so there is nothing to wait for.
    """
    started_together = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not started_together:
        yield
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("nccl" if uses_gpu(accelerator) else "gloo")
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0:
        dist.barrier()
