"""What a training says at its end: its scores, what they cost, and where its files are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from convatlas.core.answers import as_table
from convatlas.core.metrics import metric
from convatlas.core.record import RunRecord
from convatlas.core.statistics import spread
from convatlas.reporting.wording import DASH, PLUS_MINUS, count, duration, listed, spread_text, with_prefix

__all__ = ["one_line", "run_answers", "runs_table", "sweep_table"]

HEADS = ("validation", "test", "parameters", "MACs", "training", "folder")

RunAnswer = dict[str, Any]
"""What is said of one seed: folder, study, variant, model, data, seed, metric, validation, test, parameters, macs,
train_seconds."""


def run_answers(folders: Iterable[Path]) -> list[RunAnswer]:
    """Read what is said of finished seeds; one that failed is left out.

    Raises:
        UserError: a record is broken.
    """
    return [_answer(folder, RunRecord.read(folder)) for folder in folders if RunRecord.is_in(folder)]


def _answer(folder: Path, record: RunRecord) -> RunAnswer:
    metrics = record.metrics
    score = metrics.score
    macs = metrics.costs.get("macs_inference") or metrics.costs.get("macs")
    return {
        "folder": folder.as_posix(),
        "study": metrics.study,
        "variant": metrics.variant,
        "model": metrics.model,
        "data": metrics.data,
        "seed": metrics.seed,
        "metric": score,
        "validation": metrics.best.get(f"val/{score}"),
        "test": metrics.test.get(score),
        "parameters": metrics.costs.get("parameters"),
        "macs": macs,
        "train_seconds": record.timing.train_seconds,
    }


def runs_table(runs: Sequence[RunAnswer]) -> str:
    """Lay the seeds of one variant out, a row each, and their mean below."""
    first = runs[0]
    rows = [[f"seed {run['seed']}", *_cells([run]), run["folder"]] for run in runs]
    if len(runs) > 1:
        rows.append([count(len(runs), "seed"), *_cells(runs), Path(first["folder"]).parent.as_posix()])
    title = f"{first['model'] or first['variant']} on {first['data']}, {metric(first['metric']).title}:"
    return f"{title}\n{_table('', rows)}"


def sweep_table(jobs: Sequence[tuple[Sequence[str], Sequence[RunAnswer]]]) -> str:
    """Lay the jobs of a `--multirun` out, a row a variant: what sets it apart, and the mean over its seeds.

    Args:
        jobs: the overrides of each, and its seeds.
    """
    variants: dict[str, list[RunAnswer]] = {}
    overrides: dict[str, list[str]] = {}
    for words, runs in jobs:
        for run in runs:
            folder = Path(run["folder"]).parent.as_posix()
            variants.setdefault(folder, []).append(run)
            overrides[folder] = [word for word in words if not word.startswith(("seed=", "seeds="))]
    shared = set.intersection(*map(set, overrides.values())) if len(overrides) > 1 else set()
    rows = []
    for folder, runs in variants.items():
        apart = [word for word in overrides[folder] if word not in shared]
        name = " ".join(apart) or runs[0]["variant"]
        rows.append([f"{name}, {count(len(runs), 'seed')}", *_cells(runs), folder])
    metrics = dict.fromkeys(metric(run["metric"]).title for runs in variants.values() for run in runs)
    title = f"{listed([*metrics]).capitalize()}, mean {PLUS_MINUS} standard deviation over the seeds:"
    return f"{title}\n{_table('run', rows)}"


def one_line(runs: Sequence[RunAnswer]) -> str:
    """Say in one line what the seeds of a variant reached."""
    first, (_, test, *_, seconds) = runs[0], _cells(runs)
    seeds = count(len(runs), "seed")
    return f"{first['study']}/{first['variant']}: test {metric(first['metric']).title} {test}, {seeds}, {seconds} each"


def _cells(runs: Sequence[RunAnswer]) -> list[str]:
    """Write the mean over seeds of what the columns between name and folder say."""
    shown = metric(runs[0]["metric"])
    scores = [spread_text(shown, spread(run[split] for run in runs)) for split in ("validation", "test")]
    seconds = spread(run["train_seconds"] for run in runs)
    costs = [DASH if runs[0][name] is None else with_prefix(runs[0][name]) for name in ("parameters", "macs")]
    return [*scores, *costs, duration(seconds.mean if seconds else None)]


def _table(head: str, rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out with the folder last, as words."""
    return as_table([head, "folder", *HEADS[:-1]], [[row[0], row[-1], *row[1:-1]] for row in rows], words=2)
