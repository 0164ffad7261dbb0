"""`convatlas measure run=runs/overview runtime=torch,onnxruntime threads=1 batch=1,8`: how fast trained nets answer.

`run` names a seed, a variant, whose first seed is taken, or a study, each of whose variants is measured. A line has
the quantiles of the seconds of a batch, images a second, and the memory that the net and its answers take. With
`output_dir` the same goes to `latency.csv` and `latency.json`, and the test score against the latency to `latency.svg`.
Other programs on the machine slow it: measure when it has nothing else to do.

    convatlas measure run=runs/mobilenet record=true && convatlas report mobilenet

lets the nets of a study take turns, those of one seed after those of another, first in answering and then in training
steps, and leaves the seconds in its folder: the `latency` and the `training_step` that claims compare, and columns and
charts of the report.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from convatlas.core.cli import print_message, read_options, run
from convatlas.core.config import Positive, Section
from convatlas.core.errors import UserError
from convatlas.core.files import read_json, write_json, write_text
from convatlas.core.folders import check_replaceable, written_folder
from convatlas.core.imports import quick_imports

Row = dict[str, Any]
HEADINGS = ("net", "runtime", "threads", "batch", "ms p50", "ms p90", "ms p99", "images/s", "MB", "score")


class Options(Section):
    """What the command line may say."""

    run: Annotated[list[Path], Field(min_length=1)]
    """Seeds, variants or studies below runs/."""
    runtime: list[Literal["torch", "compile", "onnxruntime"]] = Field(default=["torch"])
    threads: list[Annotated[int, Field(ge=1, le=1024)]] = Field(default=[1])
    batch: list[Positive] = Field(default=[1])
    """Images in a batch; detectors are measured with one alone."""
    seconds: Annotated[float, Field(gt=0)] = 2.0
    """That each setting is timed for, at least."""
    record: bool = False
    """Measure the nets of a study in turns, for its report and claims."""
    output_dir: Path | None = None
    format: Literal["text", "json"] = "text"


def main() -> None:
    """Measure, and print a line for each setting as soon as it is there."""
    options = read_options(Options, sys.argv[1:])
    if options.output_dir is not None:
        check_replaceable(options.output_dir, "measure", "output_dir")
    if options.record:
        record(options)
        return
    folders = [folder for each in options.run for folder in seeds_of(each)]
    rows: list[Row] = []
    if options.format == "text":
        print(line(HEADINGS))
    for folder in folders:
        for row in measured(folder, options):
            rows.append(row)
            if options.format == "text":
                print(line(cells(row)), flush=True)
    if not rows:
        raise UserError("Nothing could be measured; see the lines above.")
    if options.format == "json":
        print(json.dumps(rows))
    if options.output_dir is not None:
        write(rows, options.output_dir)


def record(options: Options) -> None:
    """Measure the nets of a study in turns, seed by seed, and leave `speed.json` in its folder.

    Raises:
        UserError: more than one study or setting is named, there is no finished run, or a net cannot be measured.
    """
    one_of = (options.run, options.runtime, options.threads, options.batch)
    if any(len(each) > 1 for each in one_of) or options.output_dir is not None or options.format != "text":
        raise UserError(
            "record=true takes one study, one runtime, one number of threads and one size of batch, and writes into "
            "the study's folder; leave out what is more, and output_dir and format."
        )
    (study,) = options.run
    seeds: dict[str, list[Path]] = {}
    for file in sorted(study.glob("*/seed=*/metrics.json")):
        seeds.setdefault(file.parent.name, []).append(file.parent)
    if not seeds:
        raise UserError(f"run={study}: record=true takes the folder of a study, and there is no finished run in this.")
    with quick_imports():
        from convatlas.core.digests import digest
        from convatlas.core.environment import processor
        from convatlas.core.record import RunRecord, Speeds
        from convatlas.exporting.measuring import Setting, in_turns

    setting = Setting(options.runtime[0], options.threads[0], options.batch[0])
    nets: dict[str, Speeds.Net] = {}
    print(f"{'net':<28}{'seed':<10}{'latency':>12}{'training step':>16}", flush=True)
    for seed, folders in sorted(seeds.items()):
        for folder, (latency, step) in zip(folders, in_turns(folders, setting, options.seconds), strict=True):
            identity = digest(RunRecord.read(folder).identity)
            nets[f"{folder.parent.name}/{seed}"] = Speeds.Net(identity=identity, latency=latency, training_step=step)
            print(f"{folder.parent.name:<28}{seed:<10}{1e3 * latency:>9.3g} ms{1e3 * step:>13.4g} ms", flush=True)
    found = Speeds(**asdict(setting), machine=processor(), nets=nets)
    write_json(study / Speeds.NAME, found.model_dump())
    print(f"{study / Speeds.NAME}; `python -m convatlas.report {study.name}` puts it into the report.")


def seeds_of(path: Path) -> list[Path]:
    """Return the folders of seeds that a path stands for: itself, its first seed, or that of each variant in it.

    Raises:
        UserError: there is none.
    """
    if (path / "config.yaml").is_file():
        return [path]
    for pattern in ("seed=*/config.yaml", "*/seed=*/config.yaml"):
        found = sorted(path.glob(pattern))
        if found:
            first = {file.parent.parent: file.parent for file in reversed(found)}
            return sorted(first.values())
    raise UserError(f"run={path}: there is no finished run; train first, or correct the path.")


def measured(folder: Path, options: Options) -> list[Row]:
    """Return a row for each setting of a run; a runtime that its net cannot take is said and left out."""
    with quick_imports():
        from convatlas.exporting.measuring import measure
        from convatlas.models.served import SERVED
        from convatlas.tasks import task_class
        from convatlas.training.run import quieten_libraries
        from convatlas.training.trained import load_run

    quieten_libraries()
    trained = load_run(folder)
    config = trained.config
    metrics = read_json(folder / "metrics.json", "name the folder of a finished run.")["test"]
    score = metrics.get(task_class(config).score)
    batches = options.batch
    if SERVED[config.data.task].one_at_a_time and batches != [1]:
        print_message(f"{config.variant} is measured with batch=1 alone: it detects, one image at a time.")
        batches = [1]
    known = {"run": str(folder), "net": config.variant, "task": config.data.task, "score": score}
    rows: list[Row] = []
    for runtime in options.runtime:
        try:
            speeds = measure(trained, runtime, options.threads, batches, options.seconds)
            rows += [known | asdict(speed) for speed in speeds]
        except UserError as error:
            if len(options.runtime) == 1 and len(options.run) == 1:
                raise
            print_message(f"{config.variant} is left out for runtime={runtime}: {error}")
    return rows


def cells(row: Row) -> list[str]:
    """Return a row as texts: times in milliseconds, the score in per cent."""
    milliseconds = [f"{1e3 * row[name]:.3g}" for name in ("p50", "p90", "p99")]
    score = "" if row["score"] is None else f"{100 * row['score']:.2f} %"
    setting = [row["net"], row["runtime"], str(row["threads"]), str(row["batch"])]
    return [*setting, *milliseconds, f"{row['images_per_second']:,.0f}", f"{row['megabytes']:,.0f}", score]


def line(texts: Sequence[str]) -> str:
    """Lay cells out in columns."""
    return f"{texts[0]:<28}{texts[1]:<13}" + "".join(f"{text:>9}" for text in texts[2:])


def write(rows: list[Row], folder: Path) -> None:
    """Write the rows as CSV and JSON, and the score against the latency as a picture."""
    from convatlas.reporting.latency import latency_chart

    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with written_folder(folder, "measure", "output_dir") as partial:
        write_text(partial / "latency.csv", table.getvalue())
        write_json(partial / "latency.json", rows)
        write_text(partial / "latency.svg", latency_chart(rows))


if __name__ == "__main__":
    run(main)
