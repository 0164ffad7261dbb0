"""Trainings that choose: the best validation scores of several configurations, each trained with one seed.

Nothing is tested, tracked or kept; a training that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import torch

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.core.processes import keep_freed_memory, serve_parent, while_forking
from convatlas.data.lightning_module import open_data
from convatlas.tasks.base import DivergedError
from convatlas.training.run import fit, quieten_libraries, run_identity
from convatlas.training.work_folder import WorkFolder

__all__ = ["Score", "validation_scores"]


class Score(NamedTuple):
    """The best validation score of a training; None where it diverged."""

    value: float | None
    higher_is_better: bool


def validation_scores(configs: Sequence[RunConfig]) -> Generator[tuple[int, Score]]:
    """Train each configuration in its `work_dir`, as many at a time as cores, and yield place and score as they end.

    Raises:
        UserError: a configuration cannot be trained, or a process was ended from outside.
    """
    if not configs:
        return
    threads = max(config.trainer.threads for config in configs)
    at_once = max(1, len(os.sched_getaffinity(0)) // threads)
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("fork"), _begin) as pool:
        try:
            with while_forking():
                trainings = [pool.submit(_score, each) for each in enumerate(configs)]
            for trained in as_completed(trainings):
                yield trained.result()
        except BrokenProcessPool as error:
            raise UserError(
                "A process that trained was ended from outside. The same command goes on from its last checkpoint; if "
                "memory ran out, free some first."
            ) from error
        finally:
            for process in multiprocessing.active_children():
                process.kill()  # Lightning would make an exception of SIGTERM, and the pool begin the next training


def _begin() -> None:
    serve_parent()
    quieten_libraries()
    keep_freed_memory()


def _score(numbered: tuple[int, RunConfig]) -> tuple[int, Score]:
    number, config = numbered
    torch.set_num_threads(config.trainer.threads)
    prepared, seed = open_data(config.data), config.seeds[0]
    assert config.work_dir is not None
    work = WorkFolder(config.work_dir, run_identity(config, seed, prepared.card.fingerprint), strict=False)
    work.open(overwrite=False)
    try:
        fitted = fit(config, prepared, seed, work, lambda _row: None)
        task = fitted.task
        finite = [row[task.monitor] for row in fitted.recorder.rows if math.isfinite(row[task.monitor])]
        higher = task.monitor_mode == "max"
        score = Score((max if higher else min)(finite, default=None), higher)
    except DivergedError:
        score = Score(None, True)
    except BaseException:
        work.close()
        raise
    work.remove()
    return number, score
