"""How fast a trained net answers where it will run: each setting in a process of its own, all with the same images."""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.core.seeds import mixed_seed
from convatlas.data.module import DataModule
from convatlas.exporting.formats import onnx_answers, program_of, write_onnx
from convatlas.exporting.nets import served_net
from convatlas.models.interfaces import FollowsTraining
from convatlas.models.served import SERVED
from convatlas.tasks.optimisation import build_optimizer
from convatlas.training.run import build_task
from convatlas.training.trained import TrainedRun, load_run

__all__ = ["Runtime", "Setting", "Speed", "in_turns", "measure", "taken_in_turns"]

Answer: TypeAlias = Callable[[NDArray[np.float32]], Any]
Runtime: TypeAlias = Literal["torch", "compile", "onnxruntime"]
WARM_UP = 5
"""Batches before those that are timed; the first compiles, and fills caches."""
LEAST = 30
"""Batches that are timed at least, so that a tenth of them is some."""


@dataclass(frozen=True)
class Setting:
    """What runs a net, on how many threads, with how many images at a time."""

    runtime: Runtime
    threads: int
    batch: int


@dataclass(frozen=True)
class Speed(Setting):
    """What was measured of one net in one setting.

    Attributes:
        batches: how many were timed.
        p50, p90, p99: quantiles of the seconds of one batch.
        images_per_second: over all timed batches.
        megabytes: that the process grew at most by the net and its answers, in 10^6 bytes.
    """

    batches: int
    p50: float
    p90: float
    p99: float
    images_per_second: float
    megabytes: float


def measure(
    trained: TrainedRun, runtime: Runtime, threads: Sequence[int], batches: Sequence[int], seconds: float
) -> Iterator[Speed]:
    """Measure a run's net behind its normalisation, for each number of threads and size of batch, on random images.

    Each number of threads has a process of its own, in which the batches grow.

    Args:
        trained: the run.
        runtime: "torch" as it is written, "compile" after `torch.compile`, or its ONNX form in "onnxruntime".
        threads: of the CPU.
        batches: images in a batch; a detector takes one alone.
        seconds: that each is timed for, at least.

    Raises:
        UserError: the net cannot be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        if runtime == "onnxruntime":
            write_onnx(program_of(served_net(trained), trained), model, trained, None)
        for number in threads:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                settings = [Setting(runtime, number, batch) for batch in sorted(batches)]
                try:
                    yield from process.submit(_measured, trained.folder, model, settings, seconds).result()
                except BrokenProcessPool as error:
                    raise UserError(
                        f"The process that measured {runtime} with threads={number} was ended from outside, as for "
                        "want of memory; take fewer threads or smaller batches."
                    ) from error


def _measured(run: Path, model: Path, settings: Sequence[Setting], seconds: float) -> list[Speed]:
    """Measure settings that differ in the batch, in this process."""
    torch.set_num_threads(settings[0].threads)
    trained = load_run(run)
    data = trained.config.data
    before = psutil.Process().memory_info().rss
    answer = _runner(trained, model, settings[0])
    return [
        _timed(answer, setting, (data.in_channels, *[data.image_size] * 2), seconds, before) for setting in settings
    ]


def _timed(answer: Answer, setting: Setting, shape: tuple[int, ...], seconds: float, before: int) -> Speed:
    """Time batches of images of a shape; `before` is what the process had in memory without the net, in bytes."""
    images = np.random.default_rng(0).random((setting.batch, *shape), dtype=np.float32)
    for _ in range(WARM_UP):
        answer(images)
    taken: list[float] = []
    while len(taken) < LEAST or sum(taken) < seconds:
        start = time.perf_counter()
        answer(images)
        taken.append(time.perf_counter() - start)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before  # Linux counts in KiB
    p50, p90, p99 = np.quantile(taken, [0.5, 0.9, 0.99]).tolist()
    speed = setting.batch * len(taken) / sum(taken)
    return Speed(
        **asdict(setting),
        batches=len(taken),
        p50=p50,
        p90=p90,
        p99=p99,
        images_per_second=speed,
        megabytes=max(0, grown) / 1e6,
    )


def in_turns(runs: Sequence[Path], setting: Setting, seconds: float) -> list[tuple[float, float]]:
    """Measure the nets of several runs against each other: in each round every net answers once, or trains a step.

    So whatever else slows the machine slows all of them, and the ratio of two is worth more than either.

    Args:
        runs: folders of seeds.
        setting: of all; a detector takes one image alone.
        seconds: that the rounds take for each net, at least.

    Returns:
        The median seconds of a batch and the mean seconds of a training step, in the order of the runs. A step is that
        of the run's recipe, on a batch of its training images; the steps are spread over the whole training, as nets
        that drop blocks or freeze columns do other things at its beginning than at its end.

    Raises:
        UserError: a net cannot be exported, or its data are not there.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_in_turns, runs, setting, seconds).result()


def _in_turns(runs: Sequence[Path], setting: Setting, seconds: float) -> list[tuple[float, float]]:
    torch.set_num_threads(setting.threads)
    with tempfile.TemporaryDirectory() as folder:
        turns = [_turn(run, Path(folder, f"{number}.onnx"), setting) for number, run in enumerate(runs)]
    latencies = [float(np.median(each)) for each in taken_in_turns(turns, seconds)]
    steps = [float(np.mean(each)) for each in taken_in_turns([*map(_training_step, runs)], seconds)]
    return [*zip(latencies, steps, strict=True)]


def taken_in_turns(turns: Sequence[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """Return the seconds of each call of several that take turns, forth and back.

    Args:
        turns: what is called.
        seconds: that the rounds take for each, at least.
    """
    for _ in range(WARM_UP):
        for turn in turns:
            turn()
    taken: list[list[float]] = [[] for _ in turns]
    while len(taken[0]) < LEAST or sum(map(sum, taken)) < seconds * len(turns):
        forth = range(len(turns))
        for number in forth if len(taken[0]) % 2 else forth[::-1]:
            start = time.perf_counter()
            turns[number]()
            taken[number].append(time.perf_counter() - start)
    return taken


def _training_step(run: Path) -> Callable[[], None]:
    """Return what trains the net of a run one step further each time, on the same batch."""
    trained = load_run(run)
    if trained.config.data.module is not None:
        raise UserError(f"run={run}: record=true trains steps on prepared data, and data.module has its own.")
    config, prepared = trained.config, trained.prepared()
    task = build_task(config, list(prepared.card.classes), config.seeds[0])
    data = DataModule(prepared, config.data, config.recipe, workers=0, limit_batches=None, seed=config.seeds[0])
    batch = next(iter(data.train_dataloader()))
    if config.trainer.channels_last:
        batch["images"] = batch["images"].contiguous(memory_format=torch.channels_last)
    optimizer = build_optimizer(task.net, config.recipe)
    steps = config.recipe.epochs * data.batches_per_epoch
    spread = itertools.cycle(range(0, steps, max(1, steps // LEAST)))

    def step() -> None:
        if isinstance(task.net, FollowsTraining):
            number = next(spread)
            task.net.begin_step(number, steps, mixed_seed(config.seeds[0], number))
        loss = task.all_losses(batch)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    task.net.train()
    return step


def _turn(run: Path, model: Path, setting: Setting) -> Callable[[], Any]:
    trained = load_run(run)
    data = trained.config.data
    if setting.runtime == "onnxruntime":
        write_onnx(program_of(served_net(trained), trained), model, trained, None)
    batch = 1 if SERVED[data.task].one_at_a_time else setting.batch
    shape = (batch, data.in_channels, data.image_size, data.image_size)
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    return partial(_runner(trained, model, setting), images)


def _runner(trained: TrainedRun, model: Path, setting: Setting) -> Answer:
    if setting.runtime == "onnxruntime":
        return onnx_answers(model, setting.threads)
    served: Callable[..., Any] = served_net(trained)
    if setting.runtime == "compile":
        served = torch.compile(served)

    def answer(images: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return served(torch.from_numpy(images))

    return answer
