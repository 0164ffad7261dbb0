"""The nets of `conf/model`: built and listed from Python, and printed by `convatlas models 'fractal*'`; trained runs.

net = convatlas.create_model("revnet_cifar", num_classes=100, depth=110)
names = convatlas.list_models("*fractal*")
run = convatlas.load("runs/overview/lenet5/seed=0")
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convatlas.core.cli import read_options, run
from convatlas.core.composing import composed_net, conf_dir, hydra_ready
from convatlas.core.config import Section
from convatlas.core.digests import digest
from convatlas.core.errors import UserError, near_matches
from convatlas.core.files import read_yaml, write_json
from convatlas.core.older import upgraded
from convatlas.core.source_code import PACKAGE, Code, code_behind

if TYPE_CHECKING:
    from torch import nn

    from convatlas.training.trained import TrainedRun

LIBRARIES = ("torch", "torchvision", "timm")
"""Whose versions decide what a net counts."""

__all__ = ["build_net", "create_model", "list_models", "load", "read_about", "read_model"]


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Build a net with new weights.

    Args:
        name: a name of `list_models()`.
        arguments: what is to differ from `conf/model/<name>.yaml`, such as `num_classes`, `in_channels` or `depth`.

    Raises:
        ValueError: there is no such net or no such argument, or the net refuses a value.
    """
    try:
        model = read_model(name)["model"]
    except UserError as error:
        raise ValueError(str(error)) from error
    return build_net(model, **arguments)


def build_net(model: dict[str, Any], **arguments: Any) -> nn.Module:
    """Build the net of a section `model` with other arguments.

    Raises:
        ValueError: as `create_model`.
    """
    from convatlas.models.build import build_model

    try:
        return build_model(model | arguments)
    except UserError as error:
        raise ValueError(str(error)) from error


def list_models(pattern: str = "*", *, task: str | None = None) -> list[str]:
    """Return the names of the nets in alphabetical order.

    Args:
        pattern: as file names have them, for example `*fractal*`.
        task: classification, detection or segmentation; None lists the nets of all.
    """
    names = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
    return [name for name in names if fnmatchcase(name, pattern) and task in (None, read_about(name)["task"])]


def load(run: str | Path, checkpoint: str | Path | None = None) -> TrainedRun:
    """Load a trained run: its `net`, in evaluation mode on the CPU, its `classes`, and its `transform` of pictures.

    Args:
        run: folder of a seed, such as `runs/overview/lenet5/seed=0`.
        checkpoint: weights other than its `best.ckpt`.

    Raises:
        ValueError: there is no finished run, or it is of another version.
    """
    from convatlas.training.trained import load_run

    try:
        return load_run(Path(run), None if checkpoint is None else Path(checkpoint))
    except UserError as error:
        raise ValueError(str(error)) from error


def read_about(name: str) -> dict[str, Any]:
    """Return what a net's file says of the net; see `convatlas.core.config.About`."""
    values = read_yaml(conf_dir() / "model" / f"{name}.yaml", "correct the name.")
    about: dict[str, Any] = upgraded(values)["about"] if "defaults" not in values else read_model(name)["about"]
    return {"task": None, "paper": "", "year": None, "origin": "", "input_size": None} | about


def read_model(name: str) -> dict[str, Any]:
    """Compose a net's file; returns the sections `about` and `model`, and raises UserError for a wrong name."""
    if name not in list_models():
        raise UserError(f"{name}: there is no such net. {near_matches(name, list_models())}")
    with hydra_ready():
        return composed_net([f"model={name}"])


class Options(Section):
    """What the command line may say."""

    pattern: list[str] | None = None
    """Names to list, as file names have them, for example `fractal*`; null lists all."""
    task: Literal["all", "classification", "detection", "segmentation"] = "all"
    costs: bool = True
    """List parameters and multiply-adds; those of all nets are counted once, in a minute or two, and then kept."""
    format: Literal["text", "json"] = "text"


def main() -> None:
    """Print the list."""
    options = read_options(Options, sys.argv[1:], positional="pattern")
    task = None if options.task == "all" else options.task
    names = sorted({name for pattern in options.pattern or ["*"] for name in list_models(pattern, task=task)})
    if options.pattern and not names:
        raise UserError(
            f"{', '.join(options.pattern)}: no net has such a name. {near_matches(options.pattern[0], list_models())}"
        )
    rows = []
    width = shutil.get_terminal_size((132, 24)).columns
    counted = Counted(conf_dir().parent / ".work" / "costs.json") if options.costs else None
    for name in names:
        rows.append({"name": name, **read_about(name), **(counted.of(name) if counted else {})})
        if options.format == "text":
            print(as_line(rows[-1], max(map(len, names)), width), flush=True)
    if counted:
        counted.keep()
    if options.format == "json":
        print(json.dumps(rows, ensure_ascii=False))


def count(name: str, input_size: Sequence[int]) -> dict[str, int | None]:
    """Count parameters and multiply-adds of a net at `(channels, height, width)`, on the meta device."""
    from convatlas.models.costs import costs_of

    costs = costs_of(lambda: create_model(name), input_size)
    return {"parameters": costs.parameters, "macs": costs.macs}


class Counted:
    """The counts of nets at their papers' inputs, kept in a file until a net's code or configuration changes.

    Args:
        file: where they are kept.
    """

    def __init__(self, file: Path) -> None:
        from convatlas.atlas.nets import read_nets

        self.file, self._nets = file, read_nets()
        try:
            self._known: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def of(self, name: str) -> dict[str, Any]:
        """Return parameters and multiply-adds of a net; nothing where its file says no input size."""
        net = self._nets[name]
        size = net["about"].get("input_size")
        if not size:
            return {}
        key = digest({"net": net, "code": _code(net["model"]["_target_"]).plain()})
        if self._known.get(name, {}).get("key") != key:
            self._known[name] = {"key": key, **count(name, size)}
        return {column: self._known[name][column] for column in ("parameters", "macs")}

    def keep(self) -> None:
        """Write the file; a folder that cannot be written costs the next listing its time."""
        with suppress(OSError):
            write_json(self.file, self._known)


@cache
def _code(target: str) -> Code:
    return code_behind([PACKAGE / "models" / "costs.py"], [target], counted=("models",), libraries=LIBRARIES)


def as_line(row: dict[str, Any], name_width: int, width: int) -> str:
    """Lay a model out as one line: name, parameters and MACs in millions, task, year, paper; cut at `width`."""
    counts = ""
    if "parameters" in row:
        macs = f"{row['macs'] / 1e6:>9,.1f}M" if row["macs"] is not None else " " * 10
        counts = f"{row['parameters'] / 1e6:>8.3f}M {macs}  "
    line = f"{row['name']:<{name_width}} {counts}{row['task']:<15}{row['year']} {row['paper']}"
    return line if len(line) <= width else f"{line[: width - 1]}…"


def command() -> None:
    """Run the command line, `python -m convatlas.models`."""
    run(main)
