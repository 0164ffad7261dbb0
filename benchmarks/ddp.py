"""Two processes beside one: `python benchmarks/ddp.py [--fsdp] [--device cuda]`.

Trains the same net on the digits with the same batch over all processes, in turn with one process and with two, each
on one thread (or GPU), and compares seconds of training. Two processes on two free cores could take half the time; what
is missing is the exchange of gradients and of batch normalisation's statistics. Losses are compared as well: the same
sums are rounded in another order, and ReLU turns that into more.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.data.prepare_dataset import prepare

NET = (
    "model=resnet_cifar",
    "model.depth=14",
    "data.image_size=32",
    "recipe.batch_size=128",
)


def main() -> None:
    """Train in turn, and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--fsdp", action="store_true", help="a third way")
    parser.add_argument("--quick", action="store_true", help="one epoch of two batches, once")
    options = parser.parse_args()
    ways = {"one process": ["trainer=cpu", "trainer.devices=1"], "DDP of two": ["trainer=ddp", "trainer.devices=2"]}
    if options.fsdp:
        ways["FSDP of two"] = ["trainer=fsdp", "trainer.devices=2"]
    if options.quick:
        options.epochs, options.repeats = 1, 1
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with hydra_ready():
            config = compose_run(["data=digits", f"data.prepared={folder / 'digits'}"], {"output_dir": name})
        prepare(config.data)
        accelerator = "gpu" if options.device == "cuda" else "cpu"
        for repeat in range(options.repeats):
            for way in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
                run = folder / f"{repeat}-{way.replace(' ', '-')}"
                more = [f"trainer.accelerator={accelerator}", f"recipe.epochs={options.epochs}"]
                more += ["trainer.limit_batches=2"] if options.quick else []
                seconds[way].append(trained([*ways[way], *more, f"data.prepared={folder / 'digits'}"], run))
                losses[way] = loss_curve(run)
    base = seconds["one process"]
    print(f"ResNet-14, digits at 32x32, batch 128, {options.epochs} epochs; seconds of training, one thread a process")
    for way, times in seconds.items():
        ratio = statistics.median(t / b for t, b in zip(times, base, strict=True))
        apart = max(abs(a - b) for a, b in zip(losses[way], losses["one process"], strict=True))
        print(
            f"{way:<12} {statistics.median(times):7.2f} s   ratio {ratio:5.3f}   losses differ by at most {apart:.1e}"
        )


def trained(overrides: list[str], folder: Path) -> float:
    """Train in a process of its own and return the seconds of training."""
    command = [sys.executable, "-m", "convatlas.train", *NET, *overrides, "trainer.threads=1", "tracking=none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, f"output_dir={folder}"], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return float(json.loads((folder / "seed=0" / "timing.json").read_text())["train_seconds"])


def loss_curve(folder: Path) -> list[float]:
    """Return the training loss of every epoch."""
    with (folder / "seed=0" / "history.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


if __name__ == "__main__":
    main()
