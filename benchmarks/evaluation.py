"""What testing costs beside the net itself: `python benchmarks/evaluation.py [--quick]`.

For each task a net is tested through the pipeline, metrics and a row for each image included, and in turn its forward
passes alone run over the same batches, which lie in memory. What the ratio is above 1 is the metrics' and the rows':
accuracy, F1 and calibration; Dice and surface distances; mean average precision by COCO's rules. Weights are untrained,
and the detector keeps as many boxes as it may, however unsure, which is the worst case. One thread; medians of rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from torchvision.models.detection import RetinaNet

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.data.module import DataModule
from convatlas.data.prepare_dataset import prepare
from convatlas.data.prepared import PreparedData
from convatlas.tasks.base import Task
from convatlas.training.run import build_task, quieten_libraries

CASES = {
    "classification": ("data=digits", "data.image_size=32", "model=resnet_cifar", "model.depth=20"),
    "segmentation": ("data=heart_phantom", "model=unet_small"),
    "detection": ("data=digit_scenes", "model=retinanet_small", "recipe=detection"),
}
SMALL = {
    "classification": [],
    "segmentation": ["data.source.patients=12"],
    "detection": ["data.source.scenes=60"],
}
Seconds = tuple[float, float]
"""Wall-clock and CPU seconds."""


def main() -> None:
    """Print both ways for each task, and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small data, one round")
    options = parser.parse_args()
    quieten_libraries()
    torch.set_num_threads(1)
    for name, overrides in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            measure(name, [*overrides, *(SMALL[name] if options.quick else [])], Path(folder), options)


def measure(name: str, overrides: list[str], folder: Path, options: argparse.Namespace) -> None:
    """Prepare a data set, let testing and the bare forward passes take turns over its test split, and print a line."""
    with hydra_ready():
        place = [f"data.prepared={folder / 'prepared'}", "tracking=none", "trainer.threads=1"]
        config = compose_run([*overrides, *place], {"output_dir": str(folder / "run")})
    prepare(config.data)
    prepared = PreparedData.open_for(config.data)
    data = DataModule(prepared, config.data, config.recipe, workers=0, limit_batches=None, seed=0)
    task = build_task(config, list(prepared.card.classes), seed=0)
    if isinstance(task.net, RetinaNet):
        task.net.score_thresh = 0.0
    batches = list(data.test_dataloader())
    ways: dict[str, Callable[[], None]] = {
        "tested": lambda: tested(task, batches),
        "forward passes": lambda: forward(task, batches),
    }
    for way in ways.values():
        way()
    found: dict[str, list[Seconds]] = {way: [] for way in ways}
    for repeat in range(1 if options.quick else options.repeats):
        for way in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
            wall, processor = time.perf_counter(), time.process_time()
            ways[way]()
            found[way].append((time.perf_counter() - wall, time.process_time() - processor))
    images = sum(len(batch["images"]) for batch in batches)
    print(f"{name}, {images} images, {type(task.net).__name__}")
    for number, what in enumerate(("wall", "processor")):
        ours, bare = (statistics.median(seconds[number] for seconds in found[way]) for way in ways)
        ratio = statistics.median(a[number] / b[number] for a, b in zip(*found.values(), strict=True))
        print(f"  {what:<10} tested {ours:7.2f} s   forward passes {bare:7.2f} s   ratio {ratio:5.2f}", flush=True)


def tested(task: Task, batches: list[dict[str, object]]) -> None:
    """Test as a run does."""
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(task, DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert task.test_rows


@torch.inference_mode()
def forward(task: Task, batches: list[dict[str, object]]) -> None:
    """Run the net alone."""
    net = task.net.eval()
    for batch in batches:
        net(batch["images"])


if __name__ == "__main__":
    main()
