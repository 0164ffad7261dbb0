"""Real photographs on two cores: `python benchmarks/cifar10.py`; the figures of docs/cifar10.md.

First a ResNet-20 is trained on CIFAR-10 for about a quarter of an hour. Then the question of transfer learning with few
images: a ResNet-20 that has seen the first five classes learns the other five from 50 images of each, with its features
frozen, with its last stage trained, with all trained; and one begins anew. Prints both tables in Markdown. A finished
training is not repeated. The files have to lie in data/raw/cifar10, or in the folder that `--root` names; else they are
downloaded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from convatlas.core import cli
from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.config import RunConfig
from convatlas.data.prepare_dataset import prepare
from convatlas.training.run import train

COMMON = ("data=cifar10", "model=resnet_cifar", "model.depth=20", "tracking=none")
RECIPE = ("recipe=cifar", "recipe/schedule=cosine", "recipe.schedule.warmup_epochs=1")
LONG = (*RECIPE, "recipe.epochs=18")
FIRST = (
    *("data.source.classes=[airplane,automobile,bird,cat,deer]", "data.num_classes=5"),
    *(*RECIPE, "recipe.epochs=8"),
)
FEW = (
    *("data.source.classes=[dog,frog,horse,ship,truck]", "data.num_classes=5"),
    *("data.split.train_per_class=50", "data.split.validation=0.02", "recipe.epochs=30"),
    *("recipe.augmentation.crop_padding=4", "recipe.augmentation.horizontal_flip=true"),
    *("recipe.augmentation.rotation_degrees=0", "recipe.augmentation.scale=0"),
)
WAYS = {
    "from scratch": ("recipe=laptop",),
    "frozen features": ("recipe=frozen_features",),
    "last stage fine-tuned": ("recipe=fine_tune_last_stage",),
    "all fine-tuned": ("recipe=fine_tune_all",),
}


def main() -> None:
    """Train and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data/raw/cifar10"))
    parser.add_argument("--folder", type=Path, default=Path(".work/cifar10"))
    parser.add_argument("--part", choices=["long", "few", "both"], default="both")
    options = parser.parse_args()
    if options.part != "few":
        print(table({"ResNet-20, 18 epochs": trained(composed(options, "long", LONG))}))
    if options.part != "long":
        found = {"the first five classes": trained(composed(options, "first", FIRST))}
        begin = f"weights='{found['the first five classes'][0]}'"  # quoted: `seed=0` has a sign of Hydra's
        for way, overrides in WAYS.items():
            weights = () if way == "from scratch" else (begin,)
            found[way] = trained(
                composed(options, "few", [*overrides, *FEW, *weights], run=way.replace(" ", "_"), seeds=range(3))
            )
        print(table(found))


def composed(
    options: argparse.Namespace, data: str, overrides: Sequence[str], *, run: str = "run", seeds: Sequence[int] = (0,)
) -> RunConfig:
    """Compose a run on one division of the data, prepared in a folder of its own."""
    folder = options.folder / data
    places = [f"data.name=cifar10_{data}", f"data.root={options.root}", f"data.prepared={folder / 'prepared'}"]
    named = {"variant": f"{data}-{run}", "seeds": list(seeds), "output_dir": str(folder / run)}
    with hydra_ready():
        return compose_run([*COMMON, *overrides, *places], named)


def trained(config: RunConfig) -> list[Path]:
    """Prepare the data, train, and return the folders of the seeds."""
    if not config.data.prepared.exists():
        prepare(config.data)
    return train(config, strict=True)


def table(runs: dict[str, list[Path]]) -> str:
    """Return test accuracy and times in Markdown, a line a training, with the deviation over its seeds."""
    lines = [
        "| training | seeds | test accuracy, % | best epoch | training | latency |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for title, folders in runs.items():
        metrics, timing = (
            [json.loads((folder / name).read_text()) for folder in folders] for name in ("metrics.json", "timing.json")
        )
        scores = [100 * found["test"]["accuracy"] for found in metrics]
        spread = f" ± {stdev(scores):.2f}" if len(scores) > 1 else ""
        best = ", ".join(str(found["best_epoch"]) for found in metrics)
        seconds = mean(found["train_seconds"] for found in timing)
        latency = 1000 * mean(found["latency_seconds"] for found in timing)
        lines.append(
            f"| {title} | {len(scores)} | {mean(scores):.2f}{spread} | {best} | {seconds:.0f} s | {latency:.2f} ms |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
