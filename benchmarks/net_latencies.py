"""How fast do the overview's nets answer, in torch and in onnxruntime? Writes the table of docs/export.md.

    python benchmarks/net_latencies.py [--quick]

One image at a time, one thread. The weights are random, which changes nothing about the time of a classifier or a
segmentation net; a detector's depends on what it finds, and random weights find little. All nets take turns in both
runtimes, so that whatever else slows the machine slows all; still, run it when the machine does nothing else. Two cores
take about five minutes, most of them for the export. `--quick` shows that it works with two nets, and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from convatlas.core.composing import hydra_ready
from convatlas.core.config import RunConfig
from convatlas.core.environment import processor
from convatlas.core.errors import UserError
from convatlas.core.files import write_text
from convatlas.exporting.formats import onnx_answers, program_of, write_onnx
from convatlas.exporting.measuring import taken_in_turns
from convatlas.models.build import build_model
from convatlas.models.served import SERVED
from convatlas.studies.counting import counts
from convatlas.studies.planning import load_study, planned_runs
from convatlas.training.run import quieten_libraries
from convatlas.training.trained import TrainedRun

PAGE = Path(__file__).resolve().parents[1] / "docs" / "export.md"
BEGIN, END = "<!-- written by benchmarks/net_latencies.py -->", "<!-- end of the latencies -->"
"""What the table stands between."""


def main() -> None:
    """Build, export, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two nets, and nothing is written")
    quick = parser.parse_args().quick
    quieten_libraries()
    torch.set_num_threads(1)
    configs = overview()
    configs = dict([*configs.items()][:2]) if quick else configs
    turns: dict[tuple[str, str], Callable[[], Any]] = {}
    refused: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        for name, config in configs.items():
            try:
                turns |= {(name, runtime): turn for runtime, turn in answering(config, Path(folder, name)).items()}
            except UserError as error:
                refused[name] = str(error)
            print(name, flush=True)
        taken = taken_in_turns([*turns.values()], 0.01 if quick else 0.5)
        seconds = dict(zip(turns, map(statistics.median, taken), strict=True))
    where = f"{processor()}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"
    lines = [
        f"Median milliseconds of one image, on one thread of {where}:",
        "",
        "| net | image | parameters | MACs, millions | torch | onnxruntime | torch / onnxruntime |",
        "|---" * 7 + "|",
        *(row(name, config, seconds) for name, config in configs.items() if name not in refused),
        *(f"\n{reason}" for reason in refused.values()),
    ]
    print("\n".join(lines))
    if not quick:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        write_text(PAGE, f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}")


def overview() -> dict[str, RunConfig]:
    """Return the configurations of the overview's nets at laptop scale, by variant."""
    with hydra_ready():
        study, scale = load_study("overview", "laptop")
        runs = planned_runs(study, scale, [0], [])
    return {run.config.variant: run.config for run in runs}


def answering(config: RunConfig, file: Path) -> dict[str, Callable[[], Any]]:
    """Return what answers for one image, by runtime; raises UserError where the net cannot leave as ONNX."""
    data = config.data
    net = build_model(config.model).eval()
    served = SERVED[data.task](net, [0.0] * data.in_channels, [1.0] * data.in_channels).eval()
    run = TrainedRun(file, config, net)
    write_onnx(program_of(served, run), file, run, None)
    images = np.random.default_rng(0).random((1, data.in_channels, *[data.image_size] * 2), dtype=np.float32)

    def in_torch() -> Any:
        with torch.inference_mode():
            return served(torch.from_numpy(images))

    return {"torch": in_torch, "onnxruntime": partial(onnx_answers(file), images)}


def row(name: str, config: RunConfig, seconds: dict[tuple[str, str], float]) -> str:
    """Return a net's row of the table."""
    size = (config.data.in_channels, config.data.image_size, config.data.image_size)
    costs = counts(config.model, size, ["parameters", "macs"])
    ours, theirs = (1e3 * seconds[name, runtime] for runtime in ("torch", "onnxruntime"))
    cells = [
        config.about.title,
        " x ".join(map(str, size)),
        f"{costs['parameters']:,.0f}",
        f"{costs['macs'] / 1e6:.2f}",
    ]
    return f"| {' | '.join(cells)} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.1f} |"


if __name__ == "__main__":
    main()
