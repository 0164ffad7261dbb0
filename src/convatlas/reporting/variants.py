"""One variant's seeds as a report reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convatlas.studies.claims import Quantity


@dataclass(frozen=True)
class SeedRun:
    """One finished training.

    Attributes:
        seed: its seed.
        folder: where its files lie.
        metrics: `metrics.json`.
        timing: `timing.json`.
        environment: `environment.json`.
        history: the columns of `history.csv`, one value an epoch; NaN where a column has none.
    """

    seed: int
    folder: Path
    metrics: Mapping[str, Any]
    timing: Mapping[str, Any]
    environment: Mapping[str, Any]
    history: Mapping[str, Sequence[float]]

    def test(self, metric: str) -> float | None:
        """Return a test metric; None where the run has none."""
        return measured(metric, self.metrics.get("test", {}).get(metric))

    def cost(self, name: str) -> float | None:
        """Return a cost of the net; None where it was not counted."""
        return measured(name, self.metrics.get("costs", {}).get(name))

    def seconds(self, name: str) -> float | None:
        """Return a time of `timing.json`; None where it was not taken."""
        return measured(name, self.timing.get(name))

    def figure(self, quantity: Quantity) -> float | None:
        """Return what a claim speaks of, by the names of `convatlas.studies.claims`; None where the run has it not."""
        if quantity.figure == "history":
            assert quantity.column is not None
            assert quantity.epoch is not None
            column = self.history.get(quantity.column, ())
            place = quantity.epoch - 1 if quantity.epoch > 0 else quantity.epoch
            return column[place] if -len(column) <= place < len(column) else None
        tested = self.metrics.get("test", {})
        if quantity.part is not None:
            tested = self.metrics.get("parts", {}).get(quantity.part, {})
        if quantity.figure == "error":
            accuracy = measured("accuracy", tested.get("accuracy"))
            return None if accuracy is None else 1 - accuracy
        if quantity.figure in tested:
            return measured(quantity.figure, tested[quantity.figure])
        return None if quantity.part else self.cost(quantity.figure) or self.seconds(quantity.figure)

    def figures(self) -> list[Path]:
        """List the run's pictures by name."""
        return sorted((self.folder / "figures").glob("*.png"))


@dataclass(frozen=True)
class Variant:
    """One row of a comparison: a net, its data and its recipe, trained with several seeds.

    Attributes:
        key: its name in the plan and in `runs/`.
        title: its name for people, unique in its study.
        note: a remark of the study about it, or nothing.
        overrides: what sets it apart on Hydra's command line.
        task: what it is trained for.
        data: the name of its data set.
        prepared: where its prepared data lie; None where the plan does not say.
        about: title, paper, year, origin and deviations of its net.
        seeds: the seeds that the plan asks for.
        runs: the finished ones, in the order of the seeds.
        failures: by seed, why it has no result and would have none if it ran again.
    """

    key: str
    title: str
    note: str
    overrides: tuple[str, ...]
    task: str
    data: str
    prepared: Path | None
    about: Mapping[str, Any]
    seeds: tuple[int, ...]
    runs: tuple[SeedRun, ...]
    failures: Mapping[int, str]

    @property
    def missing(self) -> tuple[int, ...]:
        """The seeds without a result: failed, interrupted, or not yet run."""
        finished = {run.seed for run in self.runs}
        return tuple(seed for seed in self.seeds if seed not in finished)

    @property
    def not_run(self) -> tuple[int, ...]:
        """The seeds without a result that did not fail."""
        return tuple(seed for seed in self.missing if seed not in self.failures)

    def median_run(self, metric: str) -> SeedRun | None:
        """Return the run with the median test score, the lower of the two middle ones where their number is even."""
        scored = [(score, run.seed, run) for run in self.runs if (score := run.test(metric)) is not None]
        scored = sorted(scored, key=lambda entry: entry[:2])
        return scored[(len(scored) - 1) // 2][2] if scored else None


def measured(name: str, value: Any) -> float | None:
    """Return a figure as a number; None where there is none.

    NaN stays: a run that diverged must be seen. Detection's -1 means that no object of that kind was there to find
    (the COCO convention), which is no result.
    """
    if value is None or (value == -1 and name.startswith(("map", "mar"))):
        return None
    return float(value)
