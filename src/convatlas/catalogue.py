"""`python -m convatlas.models [task=classification] [format=json]`: every net there is, read from conf/model."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

from convatlas.core.cli import read_options, run
from convatlas.core.composing import conf_dir, hydra_ready
from convatlas.core.config import Section


class Options(Section):
    """What the command line may say."""

    task: Literal["all", "classification", "detection", "segmentation"] = "all"
    costs: bool = True
    """Build each net on the meta device and count; false lists faster."""
    format: Literal["text", "json"] = "text"


def main() -> None:
    """Print the list."""
    options = read_options(Options, sys.argv[1:])
    names = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
    rows = []
    for name in names:
        row = describe_model(name, costs=options.costs)
        if options.task in ("all", row["task"]):
            rows.append(row)
            if options.format == "text":
                print(as_line(row), flush=True)
    if options.format == "json":
        print(json.dumps(rows, ensure_ascii=False))


def describe_model(name: str, *, costs: bool) -> dict[str, Any]:
    """Return what a model's file says of it, and its counts at the paper's input."""
    from hydra import compose
    from omegaconf import OmegaConf

    with hydra_ready():
        composed: Any = OmegaConf.to_container(compose("profile", [f"model={name}"]).model, resolve=True)
    row: dict[str, Any] = {"name": name, **composed["about"]}
    if costs:
        from convatlas.models.build import build_model
        from convatlas.models.costs import costs_of

        measured = costs_of(lambda: build_model(composed), row["input_size"])
        row |= {"parameters": measured.parameters, "macs": measured.macs}
    return row


def as_line(row: dict[str, Any]) -> str:
    """Lay a model out as one line: name, task, parameters and MACs in millions, origin, paper."""
    counts = ""
    if "parameters" in row:
        macs = f"{row['macs'] / 1e6:>10,.1f}M" if row["macs"] is not None else " " * 11
        counts = f"{row['parameters'] / 1e6:>9.3f}M {macs} "
    return f"{row['name']:<28}{row['task']:<15}{counts} {row['origin']:<12}{row['paper']} ({row['year']})"


def command() -> None:
    """Run the command line, `python -m convatlas.models`."""
    run(main)
