"""A real detector on real photographs: `python benchmarks/bccd.py`; the figures of docs/bccd.md.

Prepares BCCD, trains a small CSPResNet with PANet and YOLO from scratch, and tests the epoch that was best on the
validation split once. Prints a table in Markdown and draws test images with what is there and what was found. A
finished training is not repeated. The files have to lie in data/raw/bccd, or in the folder that `--root` names.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from convatlas.core import cli
from convatlas.core.composing import compose_run, hydra_ready
from convatlas.data.module import DataModule
from convatlas.data.prepare_dataset import prepare
from convatlas.tasks.detection import SHOWN_SCORE, as_boxes, average_precision, gather_hits
from convatlas.tasks.figures import boxed_images, precision_recall
from convatlas.training.run import train
from convatlas.training.trained import load_run

OVERRIDES = (
    *("data=bccd", "model=csp_pan_yolo_small", "recipe=detection", "recipe.epochs=60", "recipe.batch_size=8"),
    *("recipe.optimizer.lr=0.002", "recipe.ema_decay=0.99", "recipe.augmentation.horizontal_flip=true"),
    *("recipe.augmentation.brightness=0.2", "recipe.augmentation.contrast=0.2", "recipe.augmentation.saturation=0.2"),
    *("model.anchors=[[[17,21]],[[40,51]],[[81,98]]]", "tracking=none", "trainer.threads=1"),
)
"""The anchors are the three clusters that k-means makes of the training boxes, in 240 x 240 pixels."""
SHORT = {"RBC": "", "WBC": "W", "Platelets": "P"}
"""What is written at a box: red cells are so many that their name would hide the picture."""


def main() -> None:
    """Train, print the table and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data/raw/bccd"))
    parser.add_argument("--folder", type=Path, default=Path(".work/bccd"))
    parser.add_argument("--pictures", type=Path, default=Path("docs/images"))
    parser.add_argument("overrides", nargs="*", help="further options of `python -m convatlas.train`")
    options = parser.parse_args()
    folder = trained(options.root, options.folder, options.overrides)
    print(table(folder))
    options.pictures.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures(folder).items():
        figure.savefig(options.pictures / f"{name}.png", dpi=130)


def trained(root: Path, folder: Path, overrides: list[str]) -> Path:
    """Prepare the data, train, and return the run's folder."""
    with hydra_ready():
        data = [f"data.root={root}", f"data.prepared={folder / 'prepared'}"]
        named = {"variant": "bccd", "output_dir": str(folder / "run")}
        config = compose_run([*OVERRIDES, *data, *overrides], named)
    if not config.data.prepared.exists():
        prepare(config.data)
    return train(config, strict=True)[0]


def table(folder: Path) -> str:
    """Return the test's figures in Markdown: by class, and their mean."""
    run = load_run(folder)
    metrics, timing = (json.loads((folder / file).read_text()) for file in ("metrics.json", "timing.json"))
    classes = run.prepared().card.classes
    rows = pd.read_parquet(folder / "predictions.parquet").to_dict("records")
    hits = gather_hits(rows)
    objects = Counter(classes[label] for label in hits.true_labels.tolist())
    lines = ["| class | objects in the test split | mAP50 |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {objects[name]} | {average_precision(curve):.3f} |"
        for name, curve in hits.by_class(classes).items()
    ]
    lines.append(f"| mean of the classes | {objects.total()} | {metrics['test']['map_50']:.3f} |")
    test = ", ".join(f"{name} {value:.3f}" for name, value in metrics["test"].items())
    return "\n".join([*lines, "", f"Test: {test}. Best epoch: {metrics['best_epoch']}. Times: {timing}."])


def pictures(folder: Path, images: int = 4) -> dict[str, Figure]:
    """Draw a few test images with true and found boxes, and precision over recall."""
    run = load_run(folder)
    prepared = run.prepared()
    classes = prepared.card.classes
    predictions = pd.read_parquet(folder / "predictions.parquet")
    module = DataModule(prepared, run.config.data, run.config.recipe, workers=0, limit_batches=None, seed=0)
    batch = module.sample_batch(predictions["index"].tolist(), images=images)
    rows = predictions.set_index("index").loc[batch["indices"].tolist()].to_dict("records")
    hits = gather_hits(predictions.to_dict("records"))
    return {
        "bccd": boxed_images(
            batch["images"], [true(row, classes) for row in rows], [found(row, classes) for row in rows]
        ),
        "bccd_precision_recall": precision_recall(hits.curve(), hits.by_class(classes), "IoU 0.5 or more"),
    }


def true(row: dict[Any, Any], classes: tuple[str, ...]) -> tuple[Any, list[str]]:
    """Return the true boxes of an image and what is written at them."""
    return as_boxes(row["true_boxes"]), [SHORT[classes[label]] for label in row["true_labels"]]


def found(row: dict[Any, Any], classes: tuple[str, ...]) -> tuple[Any, list[str]]:
    """Return the boxes that were found in an image, without the unsure ones, and what is written at them."""
    sure = [number for number, score in enumerate(row["scores"]) if score >= SHOWN_SCORE]
    return as_boxes(row["boxes"])[sure], [SHORT[classes[row["labels"][number]]] for number in sure]


if __name__ == "__main__":
    cli.run(main)
