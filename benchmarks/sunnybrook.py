"""Patient-wise cross-validation on Sunnybrook: `python benchmarks/sunnybrook.py`; the figures of docs/sunnybrook.md.

Each of the five patients is the test split once, another one chooses the best epoch, and three train the net. Prints a
table in Markdown and draws one slice of each patient with truth and prediction. Finished folds are not trained again.
Takes six minutes on a quiet CPU core. The files have to lie in data/raw/sunnybrook.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from convatlas.core import cli
from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.config import RunConfig
from convatlas.data.batches import Batch
from convatlas.data.module import DataModule
from convatlas.data.prepare_dataset import prepare
from convatlas.data.prepared import PreparedData
from convatlas.tasks.figures import masked_images, picture_channels
from convatlas.training.run import train
from convatlas.training.trained import load_run

PATIENTS = ("SCD0000101", "SCD0000201", "SCD0000301", "SCD0000401", "SCD0000501")
OVERRIDES = (
    *("data=sunnybrook", "data.image_size=96", "data.source.image_size=96", "data.source.pixel_mm=1.5"),
    *("data.split.test=0", "data.split.validation=0.25", "model=saunet_small", "data.in_channels=2"),
    *("recipe=segmentation", "recipe.epochs=40", "recipe.batch_size=8", "recipe.augmentation.crop_padding=8"),
    *("recipe.augmentation.rotation_degrees=20", "recipe.augmentation.scale=0.1", "recipe.augmentation.brightness=0.2"),
    *("tracking=none", "trainer.threads=1", "trainer.progress_bar=false"),
)


def main() -> None:
    """Train the folds, print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".work/sunnybrook"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/sunnybrook.png"))
    options = parser.parse_args()
    folders = [fold(patient, options.folder) for patient in PATIENTS]
    print(table(folders))
    picture(folders).savefig(options.picture, dpi=110)


def fold(patient: str, folder: Path) -> Path:
    """Train with one patient as the test split and return the run's folder."""
    with hydra_ready():
        data = [f"data.source.test_patients=[{patient}]", f"data.prepared={folder / 'prepared' / patient}"]
        config = compose_run([*OVERRIDES, *data], {"variant": patient, "output_dir": str(folder / "runs" / patient)})
    if not config.data.prepared.exists():
        prepare(config.data.model_copy(update={"in_channels": 1}))
    return train(config, strict=True)[0]


def table(folders: list[Path]) -> str:
    """Return the folds' figures in Markdown."""
    lines = [
        "| test patient | slices | Dice | lowest of a slice | Hausdorff distance, mm | best epoch |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    dice, distance = [], []
    for patient, folder in zip(PATIENTS, folders, strict=True):
        metrics = json.loads((folder / "metrics.json").read_text())
        slices = pd.read_parquet(folder / "predictions.parquet")["dice_cavity"]
        dice.append(metrics["test"]["dice_cavity"])
        distance.append(metrics["test"]["hausdorff_mm_cavity"])
        lines.append(
            f"| {patient} | {len(slices)} | {dice[-1]:.3f} | {slices.min():.3f} | {distance[-1]:.1f} "
            f"| {metrics['best_epoch']} |"
        )
    spreads = [(statistics.fmean(values), statistics.stdev(values)) for values in (dice, distance)]
    (dice_mean, dice_spread), (mm_mean, mm_spread) = spreads
    lines.append(
        "| mean ± standard deviation of the patients | "
        f"| {dice_mean:.3f} ± {dice_spread:.3f} | | {mm_mean:.1f} ± {mm_spread:.1f} | |"
    )
    return "\n".join(lines)


@torch.no_grad()
def picture(folders: list[Path]) -> Figure:
    """Draw the middle slice of each fold's test patient: alone, with the truth, and with the prediction."""
    images, masks, predictions = [], [], []
    for folder in folders:
        run = load_run(folder)
        batch = middle_slice(run.config, run.prepared())
        images.append(picture_channels(batch["images"]))
        masks.append(batch["masks"])
        predictions.append(run.net(batch["images"]).argmax(dim=1))
    return masked_images(torch.cat(images), torch.cat(masks), torch.cat(predictions), ["background", "cavity"])


def middle_slice(config: RunConfig, prepared: PreparedData) -> Batch:
    """Return the batch of the slice in the middle of the test split."""
    module = DataModule(prepared, config.data, config.recipe, workers=0, limit_batches=None, seed=0)
    return module.sample_batch([len(prepared.split("test")) // 2], images=1)


if __name__ == "__main__":
    cli.run(main)
