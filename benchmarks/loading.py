"""Images per second: prepared data against ImageFolder, PIL and DataLoader, on the same images and cores in one run.

    python benchmarks/loading.py [--cifar10 FOLDER] [--cores 1 2]

Small images are CIFAR-10's (`--cifar10` names the folder with `cifar-10-batches-py`; without it, random pixels of the
same shape) with pad-crop-flip; large ones are 500 x 375 JPEG, made here, with Inception crops to 224. Each way gives
normalised float batches of 128. One core is the process itself; more are used by each way as it uses them best: by
workers for files, by threads of the process for arrays. Ways take turns, and the best of three epochs counts. On one
core the CPU time is printed as well, which other work on the machine hardly changes. Then the memory of a loader
is measured over epochs. Aim: ten times for small images. `--quick` takes a few images once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from convatlas.core.config import Augmentation, DataConfig, SplitConfig
from convatlas.data.augmentation import Augmenter
from convatlas.data.batches import EpochSampler, StatelessLoader, TrainingBatches
from convatlas.data.image_files import ImageFiles
from convatlas.data.prepare_dataset import prepare_raw
from convatlas.data.prepared import PreparedData
from convatlas.data.raw import RawDataset

BATCH = 128
NOTHING: dict[str, Any] = {
    "crop_padding": 0,
    "horizontal_flip": True,
    "cutout": 0,
    "rotation_degrees": 0.0,
    "scale": 0.0,
    "brightness": 0.0,
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder of cifar-10-batches-py")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2], help="workers or threads that make batches")
    parser.add_argument("--small", type=int, default=10_000, help="small images")
    parser.add_argument("--large", type=int, default=700, help="large images")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each way")
    parser.add_argument("--quick", action="store_true", help="600 small and 300 large images, once, one core")
    options = parser.parse_args()
    if options.quick:
        options.small, options.large, options.rounds, options.cores = 600, 300, 1, [1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = {"32 x 32, pad, crop and flip": small_ways(folder / "small", small_images(options))}
        files = jpeg_files(folder / "large", options.large)
        for stored_side, how in ((None, "as they are"), (256, "with a shorter side of 256")):
            title = f"500 x 375 JPEG, Inception crops to 224, stored {how}"
            ways[title] = large_ways(folder / f"large-{stored_side}", files, stored_side)
        for title, (ours, theirs) in ways.items():
            table(title, ours, theirs, options)
        memory(folder)


# ---- the ways -------------------------------------------------------------------------------------------------------

Way = Callable[[int, int], Iterable[Any]]


def small_images(options: argparse.Namespace) -> NDArray[np.uint8]:
    """Return CIFAR-10's first images, or random pixels of their shape."""
    if options.cifar10 is None:
        return np.random.default_rng(0).integers(0, 256, (options.small, 3, 32, 32), dtype=np.uint8)
    from convatlas.data.sources.cifar import load_cifar10

    return load_cifar10(options.cifar10).pixels[: options.small]


def small_ways(folder: Path, images: NDArray[np.uint8]) -> tuple[Way, Way]:
    """Return our loader over an array, and theirs over the same images as PNG files."""
    for number, image in enumerate(images.transpose(0, 2, 3, 1)):
        path = folder / "files" / str(number % 10) / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    raw = raw_dataset(images)
    ours = prepared_way(raw, folder, {"image_size": 32}, {"crop_padding": 4})
    augmentation = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    return ours, folder_way(folder / "files", augmentation)


def jpeg_files(folder: Path, number_of_files: int) -> list[Path]:
    """Make JPEG files of coarse colours and noise, in ten folders."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(number_of_files):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        noise = rng.integers(-12, 13, (375, 500, 1))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16) + noise
        path = folder / str(number % 10) / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    print(f"made JPEG: {sum(path.stat().st_size for path in paths) / len(paths) / 1000:.0f} kB each")
    return paths


def large_ways(folder: Path, files: list[Path], stored_side: int | None) -> tuple[Way, Way]:
    """Return our loader over shards, and theirs over the same JPEG files in their own size."""
    data = {"image_size": 224, "storage": "shards", "stored_side": stored_side}
    ours = prepared_way(raw_dataset(ImageFiles(files)), folder, data, {"random_area": (0.08, 1.0)})
    return ours, folder_way(files[0].parents[1], [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()])


def raw_dataset(images: NDArray[np.uint8] | ImageFiles) -> RawDataset:
    """Label images in turn; those of validation and test are few."""
    labels = np.arange(len(images), dtype=np.int64) % 10
    classes = [str(number) for number in range(10)]
    return RawDataset(images, classes, "images", "a benchmark", "none", made=True, labels=labels)


def prepared_way(raw: RawDataset, folder: Path, data: dict[str, Any], changes: dict[str, Any]) -> Way:
    """Prepare a data set and return its training loader."""
    config = DataConfig(
        name="loading",
        task="classification",
        source={"_target_": "benchmark"},
        root=folder,
        prepared=folder / "prepared",
        in_channels=3,
        num_classes=10,
        split=SplitConfig(validation=0.02, test=0.02, seed=0),
        **data,
    )
    prepare_raw(config, raw)
    split = PreparedData.open(config.prepared).split("train")
    augmenter = Augmenter(Augmentation(**(NOTHING | changes)), "classification", config.image_size)
    loaders: dict[int, StatelessLoader] = {}

    def loader(cores: int, epoch: int) -> StatelessLoader:
        workers = 0 if cores == 1 or config.storage == "arrays" else cores
        if workers not in loaders:
            batches = TrainingBatches(
                split, image_size=config.image_size, batch_size=BATCH, augmenter=augmenter, seed=0
            )
            loaders[workers] = StatelessLoader(batches, EpochSampler(len(batches)), workers)
        loaders[workers].sampler.set_epoch(epoch)  # type: ignore[union-attr]
        return loaders[workers]

    return loader


def folder_way(folder: Path, augmentation: list[Any]) -> Way:
    """Return a loader over files as torchvision's references build it."""
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    chain = transforms.Compose([*augmentation, transforms.ToTensor(), transforms.Normalize(mean, std)])
    data = ImageFolder(str(folder), chain)
    loaders: dict[int, DataLoader] = {}

    def loader(cores: int, _: int) -> DataLoader:
        workers = 0 if cores == 1 else cores
        if workers not in loaders:
            loaders[workers] = DataLoader(
                data, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
            )
        return loaders[workers]

    return loader


# ---- measuring ------------------------------------------------------------------------------------------------------


def table(title: str, ours: Way, theirs: Way, options: argparse.Namespace) -> None:
    """Print images per second of both ways, which take turns."""
    columns = f"{'cores':>8} {'ImageFolder':>12} {'convatlas':>12} {'factor':>8}"
    print(f"\n{title}, images per second\n{columns}{'of the processor':>32}{'factor':>9}")
    for number in options.cores:
        torch.set_num_threads(number)
        rates: dict[Way, list[tuple[float, float]]] = {theirs: [], ours: []}
        for epoch in range(options.rounds):
            for way, found in rates.items():
                found.append(images_per_second(way, number, epoch))
        (one, one_processor), (other, other_processor) = (map(max, zip(*rates[w], strict=True)) for w in (theirs, ours))
        processor = f"{one_processor:>19,.0f} {other_processor:>12,.0f} {other_processor / one_processor:>8.1f}"
        print(
            f"{number:>8} {one:>12,.0f} {other:>12,.0f} {other / one:>8.1f}{processor if number == 1 else ''}",
            flush=True,
        )


def images_per_second(way: Way, cores: int, epoch: int) -> tuple[float, float]:
    """Run one epoch; returns images a second of wall-clock time, and of this process's CPU time.

    The clock starts at the first batch, when the workers are there.
    """
    batches = iter(way(cores, epoch))
    next(batches)
    start, processor = time.perf_counter(), time.process_time()
    images = sum(len(batch[0] if isinstance(batch, list) else batch["images"]) for batch in batches)
    return images / (time.perf_counter() - start), images / (time.process_time() - processor)


def memory(folder: Path) -> None:
    """Print the memory of this process, without what is mapped from files, after each epoch over both kinds of data."""
    print("\nmemory of the process after each epoch, mapped files aside, MB")
    process = psutil.Process()
    ways: dict[str, tuple[Path, dict[str, Any]]] = {
        "arrays": (folder / "small" / "prepared", {"crop_padding": 4}),
        "shards": (folder / "large-256" / "prepared", {"random_area": (0.08, 1.0)}),
    }
    for name, (prepared, changes) in ways.items():
        size = 32 if name == "arrays" else 224
        augmenter = Augmenter(Augmentation(**(NOTHING | changes)), "classification", size)
        split = PreparedData.open(prepared).split("train")
        batches = TrainingBatches(split, image_size=size, batch_size=BATCH, augmenter=augmenter, seed=0)
        used = []
        for epoch in range(6):
            for batch in range(len(batches)):
                batches[epoch, batch]
            info = process.memory_info()
            used.append((info.rss - info.shared) / 1e6)
        print(f"  {name}: {' '.join(f'{value:.0f}' for value in used)}")


if __name__ == "__main__":
    main()
