"""`python -m convatlas.track runs/overview/lenet5 [...] [uri=...]`: sends finished runs to MLflow.

For runs that MLflow has not, or not whole: after an outage, after a kill at the very end, after `mlflow.db` was
deleted, or where they were trained without tracking. What is there already is left as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from convatlas.core.cli import read_options, run
from convatlas.core.composing import read_run
from convatlas.core.config import RunConfig, Section
from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml
from convatlas.core.imports import quick_imports
from convatlas.core.record import RunRecord
from convatlas.core.targets import check_trusted

if TYPE_CHECKING:
    from convatlas.data.card import Card


class Options(Section):
    """What the command line may say."""

    run: tuple[Path, ...] = ()
    """Folders of seeds, or folders above such."""
    uri: str | None = None
    """The store; null takes that of each run's configuration."""


def main() -> None:
    """Send every finished seed below the named folders."""
    options = read_options(Options, sys.argv[1:], positional="run")
    if not options.run:
        raise UserError("Name the folder of a run, for example `python -m convatlas.track runs/overview/lenet5`.")
    with quick_imports():
        from convatlas.tracking.records import settings_of
        from convatlas.tracking.store import ANOTHER_STORE

    variants: dict[tuple[Path, str], dict[Path, RunRecord]] = {}
    for folder in finished_seeds(options.run):
        record = RunRecord.read(folder)
        variants.setdefault((folder.parent, digest(settings_of(record))), {})[folder] = record
    try:
        for records in variants.values():
            send(records, options.uri)
    except UserError as error:
        raise UserError(str(error).replace(ANOTHER_STORE, "name another one by uri=...")) from error


def finished_seeds(folders: Iterable[Path]) -> list[Path]:
    """Return the folders of the finished seeds in or below some folders.

    Raises:
        UserError: there is none in one of them.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        inside = sorted(path.parent for path in folder.rglob("metrics.json") if path.parent.name.startswith("seed="))
        seeds = [seed for seed in inside if not any(part.startswith(".") for part in seed.relative_to(folder).parts)]
        if not seeds:
            raise UserError(f"{folder} holds no finished run; name a folder such as runs/overview/lenet5.")
        found |= dict.fromkeys(seeds)
    return list(found)


def send(records: dict[Path, RunRecord], uri: str | None) -> None:
    """Send seeds of one variant, and what is of all of them."""
    from convatlas.tracking.runs import end_status
    from convatlas.tracking.tracker import MlflowVariantTracker

    folder, record = list(records.items())[-1]
    seeds = tuple(record.metrics.seed for record in records.values())
    config = run_config(folder, uri).model_copy(update={"output_dir": folder.parent, "seeds": seeds})
    fingerprint = record.metrics.data_fingerprint or ""
    tracker = MlflowVariantTracker(config, fingerprint, card_of(config), record.environment).opened()
    try:
        for seed in records:
            print(f"{seed}: {'sent' if tracker.send(seed) else 'is there already'}", flush=True)
    except BaseException as error:
        with suppress(Exception):
            tracker.run.end(end_status(type(error)))
        raise
    tracker.finish()


def run_config(folder: Path, uri: str | None) -> RunConfig:
    """Read the configuration of a finished seed, tracking turned on."""
    file = folder / "config.yaml"
    values = read_yaml(file, "train the run again.")
    check_trusted(values, str(file))
    config = read_run(values, str(file))
    chosen = {"enabled": True, "uri": uri or config.tracking.uri}
    return config.model_copy(update={"tracking": config.tracking.model_copy(update=chosen)})


def card_of(config: RunConfig) -> Card | None:
    """Return the card of the data as they are prepared now; None where they are not."""
    from convatlas.data.card import Card

    try:
        return Card.read(config.data.prepared)
    except UserError:
        return None


if __name__ == "__main__":
    run(main)
