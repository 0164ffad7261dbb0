"""Which process of a distributed training this is, whoever started it: torchrun, SLURM, or Lightning itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

STARTED = time.perf_counter()
"""When this process began, nearly: an entry point imports this file among its first."""


class Launched(NamedTuple):
    """What started the processes of this training all at once."""

    launcher: str
    processes: int


def launched() -> Launched | None:
    """Return what started this process among others; None alone, or where Lightning starts the others later."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Launched("torchrun", int(os.environ["WORLD_SIZE"]))
    if _is_task_of_srun():
        return Launched("srun", int(os.environ["SLURM_NTASKS"]))
    return None


def rank() -> int:
    """Return the global rank; 0 in a single process and in the process from which Lightning starts the others."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("RANK", "0"))
    return int(os.environ["SLURM_PROCID"] if _is_task_of_srun() else os.environ.get("LOCAL_RANK", "0"))


def _is_task_of_srun() -> bool:
    """Say whether srun started this process among others; in a script that sbatch runs, most variables are the same."""
    variables = os.environ
    return int(variables.get("SLURM_NTASKS", "1")) > 1 and {"SLURM_PROCID", "SLURM_STEP_ID"} <= variables.keys()


def uses_gpu(accelerator: str) -> bool:
    """Say whether a run with this `trainer.accelerator` computes on a GPU, which is one of CUDA."""
    import torch

    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # otherwise a process that has asked cannot be forked
    return accelerator != "cpu" and torch.cuda.is_available()


@contextmanager
def rank_zero_first(accelerator: str) -> Iterator[None]:
    """Let the other processes wait until rank zero has left the block.

    Under torchrun and SLURM all processes start at once, and what rank zero decides from files the others must find
    decided. Lightning starts its own processes after the first such block, so there is nothing to wait for in it;
    there is in those of further seeds.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        if launched() is None or launched() == ("torchrun", 1):
            yield
            return
        _join(accelerator)
    if rank() > 0:
        dist.barrier()
        yield
        return
    try:
        yield
    finally:
        dist.barrier()


def _join(accelerator: str) -> None:
    """Make the group of all processes, before Lightning, which then takes it as it is."""
    import torch
    import torch.distributed as dist
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    environment: ClusterEnvironment = TorchElasticEnvironment()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        environment = SLURMEnvironment(auto_requeue=False)
    os.environ["MASTER_ADDR"] = environment.main_address
    os.environ["MASTER_PORT"] = str(environment.main_port)
    place: dict[str, Any] = {"rank": environment.global_rank(), "world_size": environment.world_size()}
    if not uses_gpu(accelerator):
        dist.init_process_group("gloo", **place)
        return
    device = torch.device("cuda", environment.local_rank())
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device, **place)


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Ask Linux to end this process with the one that started it, so that a killed DVC or torchrun leaves none behind.

    To be called first: a parent that died before is not noticed. Its number does not tell, since a container's first
    process, which may well be DVC or torchrun, has that of the process which takes orphans in.

    Args:
        by: SIGKILL where the process may be waiting for others, which an orderly end would wait for, too.
    """
    if sys.platform == "linux":
        import ctypes

        parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        parent = os.getppid()
        ctypes.CDLL(None).prctl(parent_death_signal, by)
        if os.getppid() != parent:
            sys.exit(128 + by)


def keep_freed_memory() -> None:
    """Keep the memory that is freed, to use it again, rather than give it back to the system.

    A step frees what it computed, glibc gives large blocks back, and Linux fills each page with zeros when the next
    step asks for it: an eighth of the CPU time of a small net's training. Other allocators are left as they are.
    """
    if sys.platform == "linux":
        import ctypes

        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            mmap_threshold, trim_threshold = -3, -1  # of <malloc.h>
            library.mallopt(mmap_threshold, 32 * 2**20)  # the most that it takes
            library.mallopt(trim_threshold, 2**31 - 1)


ValueT = TypeVar("ValueT")


def of_all_processes(value: ValueT) -> list[ValueT]:
    """Return this value as every process has it, by rank; all of them have to ask."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def is_alive(process: int) -> bool:
    """Say whether a process of this machine runs; one that has ended but was not waited for does not."""
    import psutil

    try:
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def run_program(command: Sequence[str], **options: Any) -> int:
    """Run another program and return its status; Ctrl-C, which it gets as well, lets it come to an orderly end first.

    A second Ctrl-C, or any other end of this process, ends it at once.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
        finally:
            process.kill()


# ---- the end that a signal asks for ---------------------------------------------------------------------------------

_ENDING = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []


def end_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end this process in an orderly way, and be remembered.

    They raise KeyboardInterrupt and SystemExit, which libraries may catch and turn into errors of their own.
    """
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in a script's background
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, stop)


def ending_signal() -> int | None:
    """Return the signal that asked this process to end; None if there was none."""
    return _received[0] if _received else None


def _interrupt(signum: int, _frame: Any) -> None:
    _received.append(signum)
    raise KeyboardInterrupt


def stop(signum: int, _frame: Any) -> None:
    """End in an orderly way when asked to: the run is marked KILLED and can be resumed."""
    _received.append(signum)
    raise SystemExit(128 + signum)


@contextmanager
def while_forking() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the end of the block, where processes are forked.

    Around a fork Python calls functions of libraries, and loses the exception of a signal that comes in one of them.
    The processes begin with `serve_parent`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = {each: handler for each in _ENDING if (handler := signal.getsignal(each)) is not None}
    for each in before:  # Python's part of the signal: the system's part may come to another thread
        signal.signal(each, lambda signum, _frame: waiting.append(signum))
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # in the new processes, until they have handlers of their own
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        for signum in waiting:
            signal.raise_signal(signum)


def serve_parent() -> None:
    """Begin a forked process that lives for its parent: the parent answers Ctrl-C, and ends this one by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    die_with_parent(signal.SIGKILL)
