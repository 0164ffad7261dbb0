"""Seeds of one run side by side, each in a process forked from this one, which alone talks to the tracking store.

The processes are forked before anything starts threads: OpenMP's do not survive a fork, and a child would wait for
them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from tqdm import tqdm

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.core.processes import launched, serve_parent, uses_gpu, while_forking
from convatlas.models.build import build_model
from convatlas.models.costs import costs_of
from convatlas.tracking.tracker import SeedTracker, VariantTracker

__all__ = ["SideBySide", "seeds_at_once"]

CONTEXT_BYTES = 2 * 2**30
"""What a process takes of a GPU's memory beside its net: CUDA's context, cuDNN's workspaces, freed blocks."""


_started: set[str] = set()
"""Holds "threads" once a training in this process has started them, as an earlier job of a `--multirun` does."""


def seeds_at_once(config: RunConfig) -> int:
    """Return how many seeds of a run train at the same time; see `trainer.seeds_at_once`."""
    can_fork = sys.platform == "linux" and not (_started or torch.cuda.is_initialized())
    wants = len(config.seeds) > 1 and config.trainer.processes == 1 and launched() is None
    most = min(_most_at_once(config), len(config.seeds)) if can_fork and wants else 1
    if most == 1 and config.trainer.threads > 1:
        _started.add("threads")
    return most


def _most_at_once(config: RunConfig) -> int:
    machine = config.trainer
    if machine.seeds_at_once != "auto":
        return machine.seeds_at_once
    by_cores = max(1, len(os.sched_getaffinity(0)) // (machine.threads + machine.workers))
    if uses_gpu(machine.accelerator):
        return max(1, min(by_cores, _fit_on_gpu(config)))
    left = sum(not (config.output_dir / f"seed={seed}").exists() for seed in config.seeds)
    # a last round that would leave cores idle: better all at once, which share the cores, if they are not many
    return left if by_cores < left < 2 * by_cores else by_cores


def _fit_on_gpu(config: RunConfig) -> int:
    """Return how many trainings fit into four fifths of the GPU's free memory, in float32 whatever the precision is."""
    shape = (config.data.in_channels, config.data.image_size, config.data.image_size)
    costs = costs_of(lambda: build_model(config.model), shape, config.recipe.batch_size)
    state = 5 * 10**6 * costs.weight_megabytes  # weights, gradients, two of the optimiser, and a temporary
    return int(0.8 * _free_gpu_memory() / (CONTEXT_BYTES + state + 2 * costs.activation_bytes))


def _free_gpu_memory() -> int:
    """Return the free bytes of the GPU's memory; a child asks, since a process that has asked CUDA cannot be forked."""
    with multiprocessing.get_context("fork").Pool(1) as child:
        free: int = child.apply(torch.cuda.mem_get_info)[0]
    return free


Train = Callable[[int, VariantTracker], Path]
"""Trains one seed and returns its folder."""


class SideBySide:
    """Processes that train seeds; made before the tracker is opened, which may start threads.

    Args:
        train: trains one seed, in one of the processes.
        seeds: which.
        processes: how many.
        bar: what a progress bar over all seeds begins with; None shows none.
        epochs: of a seed.
    """

    def __init__(
        self, train: Train, seeds: Sequence[int], processes: int, bar: str | None = None, epochs: int = 0
    ) -> None:
        self._bar, self._epochs = bar, epochs
        self._seeds = seeds
        self._waiting = list(seeds)
        context = multiprocessing.get_context("fork")
        self._processes: dict[Connection, Any] = {}
        self._running: dict[Connection, int] = {}
        self._trackers: dict[int, SeedTracker] = {}
        try:
            with while_forking():
                for _ in range(processes):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_work, args=(train, theirs, [*self._processes, ours]))
                    process.start()
                    theirs.close()
                    self._processes[ours] = process
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def start(self) -> None:
        """Give every process that has nothing to do a seed; what it asks of the tracker waits for `train`."""
        for connection in self._processes.keys() - self._running.keys():
            if self._waiting:
                self._running[connection] = self._waiting.pop(0)
                _send(connection, self._running[connection])

    def train(self, tracker: VariantTracker) -> list[Path]:
        """Train all seeds and return their folders.

        Raises:
            Exception: that of the first seed that failed; the others are finished.
        """
        outcomes: dict[int, Path | Exception] = {}
        total = self._epochs * len(self._seeds)
        bar = tqdm(
            total=total, desc=self._bar, unit=" epochs", disable=self._bar is None, leave=False
        )  # starts a thread
        try:
            while self._processes and len(outcomes) < len(self._seeds):
                self.start()
                for connection in wait(list(self._running)):
                    assert isinstance(connection, Connection)
                    outcome = self._answered(connection, self._running[connection], tracker, bar)
                    if outcome is not None:
                        outcomes[self._running.pop(connection)] = outcome
        finally:
            bar.close()
            self._end()
        for seed in self._seeds:
            if isinstance(outcome := outcomes.get(seed), Exception):
                raise outcome
        return [folder for seed in self._seeds if isinstance(folder := outcomes[seed], Path)]

    def _answered(
        self, connection: Connection, seed: int, tracker: VariantTracker, bar: tqdm
    ) -> Path | Exception | None:
        """Take one message of a process; returns the seed's outcome if it is that."""
        try:
            name, arguments, waits = connection.recv()
        except (EOFError, OSError):
            return self._lost(connection, seed)
        if name == "outcome":
            self._trackers.pop(seed, None)
            outcome: Path | Exception = arguments[0]
            return outcome
        if name == "log_epoch":
            bar.update()
        if name == "start_seed":
            self._trackers[seed] = tracker.start_seed(*arguments)
        else:
            getattr(self._trackers.get(seed, tracker), name)(*arguments)
        if waits:
            _send(connection, None)
        return None

    def _lost(self, connection: Connection, seed: int) -> UserError:
        process = self._processes.pop(connection)
        process.join()
        self._trackers.pop(seed, SeedTracker()).end("KILLED")
        return UserError(
            f"The process that trained seed {seed} was ended from outside (exit status {process.exitcode}). "
            "The same command goes on from its last checkpoint; if memory ran out, add trainer.seeds_at_once=1."
        )

    def _end(self) -> None:
        """End the processes, in an orderly way those that train."""
        for connection, process in self._processes.items():
            if connection in self._running:
                process.terminate()
            connection.close()
        for process in self._processes.values():
            process.join()
        self._processes.clear()
        for tracker in self._trackers.values():
            tracker.end("KILLED")
        self._trackers.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the processes where nothing was trained."""
        self._end()


def _send(connection: Connection, value: Any) -> None:
    """Send something to a process that may be gone; reading from it tells."""
    with suppress(OSError):
        connection.send(value)


def _work(train: Train, connection: Connection, others: Sequence[Connection]) -> None:
    """Train the seeds that come through a connection."""
    serve_parent()
    for other in others:  # so that the end of the parent is the end of the connection
        other.close()
    while True:
        try:
            seed = connection.recv()
        except EOFError:
            return
        try:
            outcome: Path | Exception = train(seed, _Remote(connection))
        except Exception as error:
            outcome = _portable(error)
        _send(connection, ("outcome", (outcome,), False))


def _portable(error: Exception) -> Exception:
    """Return an error as another process can read it, with this one's traceback."""
    known = isinstance(error, UserError | OSError)
    kept = error if known else RuntimeError(f"{type(error).__name__}: {error}")
    portable: Exception = ExceptionWithTraceback(kept, error.__traceback__)
    return portable


class _Remote(VariantTracker, SeedTracker):
    """Forwards calls to the trackers of the parent process; does nothing once the parent is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _call(self, name: str, *arguments: Any, waits: bool = True) -> None:
        with suppress(EOFError, OSError):
            self._connection.send((name, arguments, waits))
            if waits:
                self._connection.recv()

    def start_seed(self, seed: int, work: Path) -> SeedTracker:
        """Start tracking a seed, without waiting."""
        self._call("start_seed", seed, work, waits=False)
        return self

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Log an epoch without waiting."""
        self._call("log_epoch", dict(row), waits=False)

    def log_results(self, folder: Path) -> None:
        """Log a finished seed."""
        self._call("log_results", folder)

    def complete(self, folder: Path) -> None:
        """Log what is missing of a seed."""
        self._call("complete", folder)

    def end(self, status: str) -> None:
        """End the run."""
        self._call("end", status)
