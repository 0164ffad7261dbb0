"""What the pipeline costs beside the training itself: `python benchmarks/pipeline.py [--cifar10 FOLDER]`.

A ResNet-20 is trained on CIFAR-10 (`--cifar10` names the folder with `cifar-10-batches-py`; without it, random pixels
of the same shape) with crops and flips, for a few epochs with validation after each, in two ways that take turns, and
the one that begins changes every round: by `convatlas.training` with everything on (MLflow, metrics, checkpoints,
history, progress bar), and by a bare loop of PyTorch over the same number of batches that sums the loss and counts
correct answers. Times are of training and validation, from the first batch to the last; start, test and reports are not
in it. Both have the channels innermost in memory. Aim: at most 1.03 times.

Then come small nets of the study `overview`, as the default plan trains them: there a step is short, and what is done
around it shows. The bare loop takes batches, loss and, once an epoch, metrics from the same classes, and leaves out
Lightning, callbacks, checkpoints, the history and MLflow. Aim: at most 1.10 times.
`--quick` shows that it works: so short a training is mostly fixed cost.

`--device cuda` runs both on a GPU, and both keep the data set in the GPU's memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.config import RunConfig
from convatlas.data.module import DataModule
from convatlas.data.prepare_dataset import prepare, prepare_raw
from convatlas.data.prepared import PreparedData, Split
from convatlas.data.raw import RawDataset
from convatlas.data.sources.cifar import load_cifar10
from convatlas.models.build import build_model
from convatlas.studies.planning import load_study, planned_runs
from convatlas.tasks import new_task
from convatlas.tasks.optimisation import build_optimizer
from convatlas.training import run

PLANNED = ("lenet5", "mobilenet_v2", "shufflenet_v2", "retinanet")
"""Small nets of the study `overview`."""
Seconds = tuple[float, float]
"""Wall-clock and CPU seconds."""


def main() -> None:
    """Prepare the data, let both ways take turns, and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder of cifar-10-batches-py")
    parser.add_argument("--images", type=int, default=12000, help="random images, where there are no real ones")
    parser.add_argument("--batches", type=int, default=40, help="training batches an epoch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--nets", nargs="*", default=["resnet20", *PLANNED], help="of resnet20 and the study overview")
    parser.add_argument("--quick", action="store_true", help="three batches, once")
    options = parser.parse_args()
    if options.quick:
        options.images, options.batches, options.epochs, options.repeats = 800, 3, 1, 1
    for net in options.nets:
        with tempfile.TemporaryDirectory() as folder:
            compare(net, options, Path(folder))


def compare(net: str, options: argparse.Namespace, folder: Path) -> None:
    """Let both ways train a net in turn, and print their times."""
    if net == "resnet20":
        config = composed(options, folder)
        raw = load_cifar10(options.cifar10, download=False) if options.cifar10 else random_pixels(options.images)
        prepare_raw(config.data, raw)
        prepared = PreparedData.open_for(config.data)
        bare: Callable[[RunConfig], Seconds] = lambda config: bare_loop(config, prepared, options.device)  # noqa: E731
    else:
        config = planned(net, options, folder)
        prepared = PreparedData.open_for(config.data)
        bare = lambda config: bare_task(config, prepared)  # noqa: E731
    ways: dict[str, Callable[[RunConfig, str], Seconds]] = {
        "bare loop": lambda config, _: bare(config),
        "pipeline": lambda config, name: pipeline(config, folder / f"run-{name}"),
    }
    for way in ways.values():
        way(changed(config, limit_batches=2), "warm-up")
    times: dict[str, list[Seconds]] = {way: [] for way in ways}
    for repeat in range(options.repeats):
        for name in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
            times[name].append(ways[name](config, str(repeat)))
    print_times(net, times, options, config)


def planned(net: str, options: argparse.Namespace, folder: Path) -> RunConfig:
    """Return a variant of the study `overview` as the default plan has it, and prepare its data."""
    overrides = [
        *(f"recipe.epochs={options.epochs}", f"data.prepared={folder / 'prepared'}", "tracking.log_model=false"),
        *(f"trainer.limit_batches={options.batches}", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"),
    ]
    with hydra_ready():
        study, scale = load_study("overview", "laptop")
        only = study.model_copy(update={"variants": {net: study.variants[net]}})
        (run,) = planned_runs(only, scale, [0], overrides)
    prepare(run.config.data)
    return run.config.model_copy(update={"work_dir": None, "overwrite": True})


def bare_task(config: RunConfig, prepared: PreparedData) -> Seconds:
    """Train the net of a planned run with what everyone writes, on the batches, loss and metrics of the pipeline."""
    torch.manual_seed(0)
    net = build_model(config.model).to(memory_format=torch.channels_last)
    task = new_task(net, config, list(prepared.card.classes), 0)
    data = DataModule(
        prepared, config.data, config.recipe, workers=0, limit_batches=config.trainer.limit_batches, seed=0
    )
    train, validation = data.train_dataloader(), data.val_dataloader()
    optimizer = build_optimizer(net, config.recipe)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.recipe.epochs * data.batches_per_epoch)
    started = now()
    for epoch in range(config.recipe.epochs):
        net.train()
        train.sampler.set_epoch(epoch)
        total = torch.zeros(())
        for batch in train:
            batch["images"] = batch["images"].contiguous(memory_format=torch.channels_last)
            loss = task.losses(batch)["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        net.eval()
        metrics = dict(task.validation_metrics.items())
        with torch.inference_mode():
            for batch in validation:
                batch["images"] = batch["images"].contiguous(memory_format=torch.channels_last)
                task.evaluate(batch, metrics)
        task.summarise(metrics)
        assert torch.isfinite(total)
        for metric in metrics.values():
            metric.reset()
    return since(started)


def changed(config: RunConfig, **options: Any) -> RunConfig:
    """Return the run with other options of its trainer."""
    return config.model_copy(update={"trainer": config.trainer.model_copy(update=options)})


def composed(options: argparse.Namespace, folder: Path) -> RunConfig:
    """Return the run of both ways: everything on."""
    trainer = "cpu" if options.device == "cpu" else "gpu"
    overrides = [
        *("data=cifar10", f"data.prepared={folder / 'prepared'}", "model=resnet_cifar", "model.depth=20"),
        *("recipe=cifar", f"recipe.epochs={options.epochs}", "recipe.batch_size=128", f"trainer={trainer}"),
        *("trainer.threads=1", "trainer.workers=0", "trainer.precision=32-true", "trainer.deterministic=false"),
        *(f"trainer.limit_batches={options.batches}", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"),
        *("tracking.log_model=false", "overwrite=true"),
    ]
    with hydra_ready():
        return compose_run(overrides, {"variant": "benchmark", "output_dir": str(folder / "run")})


def random_pixels(images: int) -> RawDataset:
    """Return a data set of CIFAR-10's shape."""
    generator = np.random.default_rng(0)
    return RawDataset(
        images=generator.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8),
        labels=np.arange(images, dtype=np.int64) % 10,
        official_split=np.array(["train" if i < 0.8 * images else "test" for i in range(images)]),
        classes=[f"class {number}" for number in range(10)],
        title="random pixels",
        origin="a benchmark",
        licence="none",
        made=True,
    )


# ---- the pipeline ---------------------------------------------------------------------------------------------------


def pipeline(config: RunConfig, folder: Path) -> Seconds:
    """Train through the pipeline with a progress bar, and time it from the first epoch to the end of the last."""
    clock = Clock()
    build = run.build_trainer

    def with_clock(*arguments: Any) -> pl.Trainer:
        trainer = build(*arguments)
        trainer.callbacks.insert(0, clock)
        return trainer

    run.build_trainer, shows_bar = with_clock, run.shows_bar
    run.shows_bar = lambda _config: True
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run.train(config.model_copy(update={"output_dir": folder}), strict=True)
    finally:
        run.build_trainer, run.shows_bar = build, shows_bar
    return clock.seconds


class Clock(pl.Callback):
    """Times from the start of the first epoch to the end of the fit."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._started = now()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop, when every other callback has done its work."""
        self.seconds = since(self._started)


# ---- the bare loop --------------------------------------------------------------------------------------------------


def bare_loop(config: RunConfig, prepared: PreparedData, device: str) -> Seconds:
    """Train the same net on the same data for as many batches, with what everyone writes and nothing more."""
    torch.manual_seed(0)
    net = build_model(config.model).to(device, memory_format=torch.channels_last)
    recipe = config.recipe
    batches = min(config.trainer.limit_batches or 10**9, len(prepared.split("train")) // recipe.batch_size)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=recipe.optimizer["lr"], momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * batches)
    card = prepared.card
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (card.mean, card.std))
    train, validation = (on_device(prepared.split(name), device) for name in ("train", "validation"))
    started = now()
    for _ in range(recipe.epochs):
        net.train()
        total = torch.zeros((), device=device)
        for chosen in torch.randperm(len(train[0]), device=device).split(recipe.batch_size)[:batches]:
            images = (train[0][chosen].float().div_(255) - mean) / std
            loss = F.cross_entropy(net(cropped_and_flipped(images)), train[1][chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        evaluate(net, validation, mean, std, config)
        assert torch.isfinite(total)
    if device == "cuda":
        torch.cuda.synchronize()
    return since(started)


def on_device(split: Split, device: str) -> tuple[Tensor, Tensor]:
    """Return images and labels of a split as tensors."""
    assert split.labels is not None
    return torch.from_numpy(np.array(split.images)).to(device), torch.from_numpy(np.array(split.labels)).to(device)


def cropped_and_flipped(images: Tensor, padding: int = 4) -> Tensor:
    """Pad, crop the original size at a place of each image's own, and flip every second."""
    count, _, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    rows = torch.randint(2 * padding + 1, (count, 1), device=images.device) + torch.arange(height, device=images.device)
    columns = torch.randint(2 * padding + 1, (count, 1), device=images.device) + torch.arange(
        width, device=images.device
    )
    flips = torch.rand(count, 1, device=images.device) < 0.5
    columns = torch.where(flips, columns.flip(1), columns)
    number = torch.arange(count, device=images.device).view(-1, 1, 1)
    chosen = padded.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]]
    return chosen.permute(0, 3, 1, 2)


@torch.inference_mode()
def evaluate(net: nn.Module, split: tuple[Tensor, Tensor], mean: Tensor, std: Tensor, config: RunConfig) -> float:
    """Return the share of correct answers on as much of a split as the pipeline looks at."""
    net.eval()
    size = config.recipe.evaluation_batch_size
    right = torch.zeros((), device=mean.device)
    seen = 0
    for images, labels in list(zip(split[0].split(size), split[1].split(size), strict=True))[
        : config.trainer.limit_batches
    ]:
        inputs = ((images.float().div_(255) - mean) / std).contiguous(memory_format=torch.channels_last)
        right += (net(inputs).argmax(1) == labels).sum()
        seen += len(labels)
    return float(right) / seen


# ---- times ----------------------------------------------------------------------------------------------------------


def now() -> Seconds:
    """Return wall-clock and CPU seconds of this process, its threads included."""
    return time.perf_counter(), time.process_time()


def since(start: Seconds) -> Seconds:
    """Return what has passed."""
    wall, processor = now()
    return wall - start[0], processor - start[1]


def print_times(net: str, times: dict[str, list[Seconds]], options: argparse.Namespace, config: RunConfig) -> None:
    """Print the median of each way, and the median of the ratios of neighbours."""
    made = "CIFAR-10" if options.cifar10 else "random pixels of CIFAR-10's shape"
    data = made if net == "resnet20" else config.data.name
    print(
        f"{net}, {data}, {options.epochs} epochs of {options.batches} batches of {config.recipe.batch_size} with "
        f"validation, on "
        f"{options.device}, one thread; median of {options.repeats} rounds"
    )
    for place, what in enumerate(("wall", "processor")):
        bare = [t[place] for t in times["bare loop"]]
        for way, rounds in times.items():
            seconds = [t[place] for t in rounds]
            ratio = statistics.median(b / a for a, b in zip(bare, seconds, strict=True))
            print(f"{what:<10} {way:<14} {statistics.median(seconds):7.2f} s   ratio {ratio:5.3f}")


if __name__ == "__main__":
    main()
