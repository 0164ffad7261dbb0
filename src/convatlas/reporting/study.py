"""A study as a report sees it: what its plan says, and the finished runs of its variants."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from convatlas.core.metrics import SCORES, Metric, measured, metric
from convatlas.core.record import RunRecord, Speeds
from convatlas.core.statistics import Spread, spread
from convatlas.reporting.predictions import Predictions, read_answers, together
from convatlas.reporting.statistics import Prior, fit_prior
from convatlas.studies.calibration import Calibration
from convatlas.studies.claims import Quantity

COSTS = (
    "parameters",
    "macs",
    "macs_inference",
    "macs_of_weights",
    "weight_megabytes",
    "activation_bytes",
    "batch_size",
)
"""What is counted and not measured, see `convatlas.models.costs.Costs`."""
TIMES = ("train_seconds", "test_seconds", "latency_seconds")
CURVE_POINTS = 60
"""Epochs kept of a learning curve; a longer one is thinned evenly."""


# ---- the plan --------------------------------------------------------------------------------------------------------


class PlanPart(BaseModel):
    """A part of `plan/<study>.yaml`; an entry that is null counts as missing."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values


class PlannedVariant(PlanPart):
    """What a study says of a variant; `overrides` is what sets it apart on Hydra's command line."""

    title: str = ""
    note: str = ""
    overrides: tuple[str, ...] = ()


class Claim(PlanPart):
    """What the lecture says, the comparisons by which our runs check it (none: they cannot), and a remark.

    `margin` is the difference that counts for nothing; None takes that of the plan.
    """

    says: str = ""
    holds: tuple[str, ...] = ()
    note: str = ""
    margin: float | None = None


class Step(PlanPart):
    """A step on a path of development: an idea, and the variants before and after it."""

    idea: str
    before: str
    after: str

    @property
    def claim(self) -> Claim:
        """What is judged of it."""
        return Claim(
            says=f"the error is lower with {self.idea}", holds=(f"error[{self.after}] < error[{self.before}]",)
        )


class CountedNet(PlanPart):
    """A paper's own net that was counted and not trained: its title, and its costs by name."""

    title: str
    costs: dict[str, float]


class Point(PlanPart):
    """A point of a lecture figure: a variant, or a part of its net; `x` where the plan gives it."""

    variant: str
    part: str | None = None
    x: float | None = None


class LectureFigure(PlanPart):
    """A figure that the lecture draws.

    Attributes:
        x: the quantity of the runs on the horizontal axis, see `convatlas.studies.claims`; None where the points have
            numbers of their own.
        x_title: title of that axis; None takes the quantity's own.
        y: the quantity of the runs on the vertical axis.
        log: which of the axes `x` and `y` are logarithmic.
        curves: ours, by title.
        printed: those that the lecture prints, by title: points in its own units.
    """

    title: str
    x: str | None = None
    x_title: str | None = None
    y: str
    log: frozenset[str] = frozenset()
    curves: dict[str, tuple[Point, ...]]
    printed: dict[str, tuple[tuple[float, float], ...]] = {}


class Grading(PlanPart):
    """Points that a course gives for a test metric, by the least value that earns them."""

    metric: str
    points: dict[float, float]

    def of(self, run: SeedRun) -> float | None:
        """Return the points of a run, 0 below the lowest step; None where the metric was not measured."""
        value = run.test(self.metric)
        if value is None or math.isnan(value):
            return None
        return max((points for least, points in self.points.items() if value >= least), default=0.0)


def _is_one_folder(key: str) -> str:
    if not key or key.startswith(".") or {"/", "\\"} & set(key):
        raise ValueError(f"{key!r} cannot be the name of a folder")
    return key


FolderName = Annotated[str, AfterValidator(_is_one_folder)]


def _claim(entry: Any) -> Any:
    return {"says": entry} if isinstance(entry, str) else entry


class Plan(PlanPart):
    """`plan/<study>.yaml`; `runs` is the folder of its runs below `runs/` where that has another name."""

    name: FolderName
    runs: str = ""
    title: str = ""
    question: str = ""
    source: str = ""
    scale: str = ""
    command: str = ""
    images: str = "made"
    margin: float = 0.01
    seeds: tuple[int, ...] = ()
    variants: Annotated[
        dict[FolderName, Annotated[PlannedVariant, BeforeValidator(lambda v: v or {})]], Field(min_length=1)
    ]
    printed: dict[str, Any] = {}
    counted: dict[str, CountedNet] = {}
    claims: tuple[Annotated[Claim, BeforeValidator(_claim)], ...] = ()
    steps: tuple[Step, ...] = ()
    deviations: tuple[str, ...] = ()
    figures: tuple[LectureFigure, ...] = ()
    grading: Grading | None = None
    calibration: Calibration = Calibration()


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Parts:
    """What each test image adds to a metric: values `(N,)` whose mean is the metric up to a constant, and which."""

    images: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class SeedRun:
    """One finished training; `speed` was measured beside the other nets of its study, or is None."""

    seed: int
    folder: Path
    record: RunRecord
    speed: Speeds.Net | None = None

    def test(self, name: str) -> float | None:
        """Return a test metric; None where the run has none."""
        return measured(name, self.record.metrics.test.get(name))

    def validation(self, name: str, moment: str) -> float | None:
        """Return a validation metric at the `best` or the `last` epoch."""
        return measured(name, getattr(self.record.metrics, moment).get(f"val/{name}"))

    def cost(self, name: str) -> float | None:
        """Return a cost of the net; None where it was not counted."""
        return measured(name, self.record.metrics.costs.get(name))

    def seconds(self, name: str) -> float | None:
        """Return one of `TIMES` or a part of the run's seconds; None where it was not taken."""
        timing = self.record.timing
        return getattr(timing, name) if name in TIMES else timing.parts.get(name)

    def alone(self, name: str) -> float | None:
        """Return the `latency` or the `training_step` of `Speeds.Net`; None where it was not measured."""
        return getattr(self.speed, name) if self.speed else None

    @property
    def all_seconds(self) -> float | None:
        """All parts of the run's seconds together; None where they were not taken."""
        return sum(self.record.timing.parts.values()) or None

    def value(self, quantity: Quantity) -> float | None:
        """Return what a claim speaks of, by the names of `convatlas.studies.claims`; None where the run has it not."""
        name, metrics = quantity.figure, self.record.metrics
        if name in Speeds.Net.FIGURES:
            return self.alone(name)
        if name == "history":
            assert quantity.column is not None
            assert quantity.epoch is not None
            column = self.record.columns.get(quantity.column, [])
            place = quantity.epoch - 1 if quantity.epoch > 0 else quantity.epoch
            return column[place] if -len(column) <= place < len(column) else None
        tested = metrics.test if quantity.part is None else metrics.parts.get(quantity.part, {})
        if name == "error":
            accuracy = measured("accuracy", tested.get("accuracy"))
            return None if accuracy is None else 1 - accuracy
        if name in tested or quantity.part is not None:
            return measured(name, tested.get(name))
        cost = self.cost(name)
        return self.seconds(name) if cost is None else cost

    def parts(self, quantity: Quantity) -> Parts | None:
        """Return what each test image adds to a figure; None where the run did not keep it."""
        answers = self.answers
        if answers is not None and quantity.part is None and f"part_{quantity.figure}" in answers:
            return Parts(answers["index"], answers[f"part_{quantity.figure}"])
        prediction = "prediction" if quantity.part is None else f"prediction_{quantity.part}"
        if answers is None or quantity.figure not in ("accuracy", "error") or prediction not in answers:
            return None
        right = answers["label"] == answers[prediction]
        images = np.stack([answers["index"], answers["label"]])
        return Parts(images, (right if quantity.figure == "accuracy" else ~right).astype(np.float64))

    @cached_property
    def answers(self) -> Mapping[str, NDArray[Any]] | None:
        """What the run left of each test image, in the order of their index; None where it left nothing."""
        return read_answers(self.folder / "predictions.parquet")


@dataclass(frozen=True)
class Variant:
    """One row of a comparison: a net, its data and its recipe, trained with several seeds.

    Attributes:
        key: its name in the plan and in `runs/`.
        title: its name on the page, unique in its study.
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

    def over_seeds(self, value: Callable[[SeedRun], float | None]) -> Spread | None:
        """Sum up a value of each finished run."""
        return spread(value(run) for run in self.runs)

    def test(self, name: str) -> Spread | None:
        """Sum up a test metric over the seeds."""
        return self.over_seeds(lambda run: run.test(name))

    def finite_tests(self, name: str) -> dict[int, float]:
        """Return a test metric by seed, of the seeds where it is finite."""
        found = ((run.seed, run.test(name)) for run in self.runs)
        return {seed: value for seed, value in found if value is not None and math.isfinite(value)}

    def seconds(self, name: str) -> Spread | None:
        """Sum up one of `TIMES` over the seeds."""
        return self.over_seeds(lambda run: run.seconds(name))

    def cost(self, name: str) -> float | None:
        """Return a cost of the net: the same for all seeds, so that of the first."""
        return next((found for run in self.runs if (found := run.cost(name)) is not None), None)

    @property
    def macs(self) -> float | None:
        """The multiply-adds of one image at inference; of the whole net where only those were counted."""
        at_inference = self.cost("macs_inference")
        return self.cost("macs") if at_inference is None else at_inference

    def median_run(self, name: str) -> SeedRun | None:
        """Return the run with the median test metric, the lower of the two middle ones where their number is even."""
        scored = [(score, run.seed, run) for run in self.runs if (score := run.test(name)) is not None]
        scored.sort(key=lambda entry: entry[:2])
        return scored[(len(scored) - 1) // 2][2] if scored else None

    def curve(self, column: str, limit: int = CURVE_POINTS) -> Iterable[tuple[int, list[float]]]:
        """Give epoch and values of all seeds for each epoch that all of them reached, thinned to `limit` epochs."""
        curves = [run.record.columns[column] for run in self.runs if column in run.record.columns]
        for index in thinned(min(map(len, curves), default=0), limit):
            values = [curve[index] for curve in curves]
            if all(map(math.isfinite, values)):
                yield index + 1, values


def thinned(length: int, limit: int) -> list[int]:
    """Return at most `limit` whole numbers from 0 to `length - 1`, evenly spaced, both ends among them."""
    if length <= limit:
        return list(range(length))
    return sorted({round(n * (length - 1) / (limit - 1)) for n in range(limit)})


@dataclass(frozen=True)
class Group:
    """The variants of a study that can be compared: those of one task on one data set."""

    task: str
    data: str
    variants: tuple[Variant, ...]
    grading: Grading | None = None

    @property
    def title(self) -> str:
        """Task and data set."""
        return f"{self.task.capitalize()} on {self.data}"

    @cached_property
    def runs(self) -> tuple[SeedRun, ...]:
        """All finished runs."""
        return tuple(run for variant in self.variants for run in variant.runs)

    @cached_property
    def score(self) -> str:
        """The name of the test metric that ranks the variants."""
        measured_ones = {name for run in self.runs for name in run.record.metrics.test}
        choices = SCORES.get(self.task, ())
        monitored = [name.removeprefix("val/") for name in self.monitors]
        return next((n for n in choices if n in measured_ones), next(iter([*monitored, *choices]), "score"))

    @cached_property
    def metric(self) -> Metric:
        """The metric of that name; one that the table does not have is best where the runs took it to be."""
        found = metric(self.score)
        if found.direction is not None:
            return found
        modes = (r.record.metrics.monitor_mode for r in self.runs if r.record.metrics.monitor == f"val/{self.score}")
        return replace(found, direction=next(modes, None))

    @cached_property
    def monitors(self) -> list[str]:
        """The validation metrics that chose the best epochs, the most frequent first."""
        return [name for name, _ in Counter(run.record.metrics.monitor for run in self.runs).most_common()]

    @cached_property
    def test_metrics(self) -> list[str]:
        """All test metrics that a run has, the ranking one first, the others as the runs list them."""
        found = ((name, run.test(name)) for run in self.runs for name in run.record.metrics.test)
        names = dict.fromkeys(name for name, value in found if value is not None and name != self.score)
        return [self.score, *names]

    @cached_property
    def best(self) -> Variant | None:
        """The variant with the best mean test score; None while no run has finished."""
        found = [(score.mean, v) for v in self.variants if (score := v.test(self.score)) and score.is_finite]
        return max(found, key=lambda pair: self.metric.sign * pair[0])[1] if found else None

    def prior(self, name: str) -> Prior | None:
        """Return what the variants' variances of a test metric over the seeds have in common, see `fit_prior`."""
        found = [variant.test("accuracy" if name == "error" else name) for variant in self.variants]
        known = [each for each in found if each is not None and each.is_finite and each.std is not None]
        return fit_prior([each.std**2 for each in known if each.std], [each.n - 1 for each in known if each.std])

    @cached_property
    def predictions(self) -> Predictions | None:
        """The class that each run predicts for each test image; None where the task has no such predictions.

        Raises:
            UserError: a run's predictions are not readable.
        """
        answers = {variant.key: {run.seed: run.answers for run in variant.runs} for variant in self.variants}
        return together(answers)

    @cached_property
    def test_images(self) -> int | None:
        """Number of test images, from the first run's predictions; None without that file."""
        return next((len(run.answers["index"]) for run in self.runs if run.answers), None)


@dataclass(frozen=True)
class Study:
    """One comparison: its plan, and its variants with their results."""

    plan: Plan
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        """Its name in the plan and in `runs/`."""
        return self.plan.name

    @property
    def title(self) -> str:
        """Its name on the page."""
        return self.plan.title or self.plan.name

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The variants by task and data set, in the order in which the plan first names each pair."""
        pairs = list(dict.fromkeys((variant.task, variant.data) for variant in self.variants))
        ordered = sorted(self.variants, key=lambda variant: pairs.index((variant.task, variant.data)))
        grouped = groupby(ordered, key=lambda variant: (variant.task, variant.data))
        return tuple(Group(task, data, tuple(variants), self.plan.grading) for (task, data), variants in grouped)

    def group_of(self, variant: Variant) -> Group:
        """Return the group that a variant belongs to."""
        return next(group for group in self.groups if any(variant is each for each in group.variants))

    @property
    def runs_planned(self) -> int:
        """Number of trainings that the plan asks for."""
        return sum(len(variant.seeds) for variant in self.variants)

    @property
    def runs_finished(self) -> int:
        """Number of those that have a result."""
        return sum(len(variant.runs) for variant in self.variants)

    @property
    def runs_failed(self) -> int:
        """Number of those that failed."""
        return sum(len(variant.failures) for variant in self.variants)
