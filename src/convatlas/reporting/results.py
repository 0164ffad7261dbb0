"""What a study's plan promises and what its runs left behind, each file read once."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from convatlas.core.config import in_current_form
from convatlas.core.errors import UserError
from convatlas.core.files import read_json, read_yaml
from convatlas.reporting.answers import Answers, read_answers
from convatlas.reporting.variants import SeedRun, Variant
from convatlas.studies.claims import Comparison, read_claim

PLAN_AGAIN = "run `dvc repro resolve`, which writes it."
RUN_AGAIN = "delete the folder of that run and start `dvc repro` again."

# The test metric that stands for a task, first choice first; a task not named here is judged by what it monitors.
SCORES: Mapping[str, Sequence[str]] = {
    "classification": ("accuracy",),
    "detection": ("map_50", "map"),
    "segmentation": ("dice", "iou"),
}


@dataclass(frozen=True)
class Grading:
    """Points that a test metric earns, as a course gives them.

    Attributes:
        metric: the test metric.
        points: `(least value, points)`, the highest first.
    """

    metric: str
    points: tuple[tuple[float, float], ...]

    def of(self, run: SeedRun) -> float | None:
        """Return the points of a run, 0 below the last step; None where the metric was not measured."""
        value = run.test(self.metric)
        if value is None or math.isnan(value):
            return None
        return next((points for least, points in self.points if value >= least), 0.0)


@dataclass(frozen=True)
class Group:
    """The variants of a study that can be compared: those of one task on one data set."""

    task: str
    data: str
    variants: tuple[Variant, ...]
    grading: Grading | None = None

    @cached_property
    def runs(self) -> tuple[SeedRun, ...]:
        """All finished runs."""
        return tuple(run for variant in self.variants for run in variant.runs)

    @cached_property
    def score(self) -> str:
        """The test metric that ranks the variants."""
        measured_ones = {name for run in self.runs for name in run.metrics.get("test", {})}
        choices = SCORES.get(self.task, ())
        for name in choices:
            if name in measured_ones:
                return name
        monitored = [name.removeprefix("val/") for name in self.monitors]
        return next(iter([*monitored, *choices]), "score")

    @cached_property
    def monitors(self) -> list[str]:
        """The validation metrics that chose the best epochs, the most frequent first."""
        found = Counter(str(run.metrics["monitor"]) for run in self.runs if run.metrics.get("monitor"))
        return [name for name, _ in found.most_common()]

    @cached_property
    def test_metrics(self) -> list[str]:
        """All test metrics that a run has, the ranking one first, the others as the runs list them."""
        found = ((name, run.test(name)) for run in self.runs for name in run.metrics.get("test", {}))
        names = dict.fromkeys(name for name, value in found if value is not None and name != self.score)
        return [self.score, *names]

    @cached_property
    def answers(self) -> Answers | None:
        """What each run answered to each test image; None where the task is not to name a class.

        Raises:
            UserError: a run's predictions are not readable.
        """
        return read_answers(self.variants, RUN_AGAIN) if self.task == "classification" else None

    @cached_property
    def test_images(self) -> int | None:
        """Number of test images, from the first run's predictions; None without that file."""
        import pyarrow.parquet as pq

        for run in self.runs:
            path = run.folder / "predictions.parquet"
            if path.is_file():
                return int(pq.read_metadata(path).num_rows)
        return None


@dataclass(frozen=True)
class Claim:
    """What the lecture says, the comparisons by which our runs check it (none: they cannot), and a remark."""

    says: str
    holds: tuple[Comparison, ...]
    note: str


@dataclass(frozen=True)
class Curve:
    """A line of one of the lecture's figures.

    Attributes:
        title: what it shows.
        entries: `(variant's key, part of its net or None, value on the horizontal axis)`; without that value it is the
            figure of the runs that `LectureFigure.x` names.
    """

    title: str
    entries: tuple[tuple[str, str | None, float | None], ...]


@dataclass(frozen=True)
class LectureFigure:
    """A figure that the lecture draws, with what the plan says of it.

    Attributes:
        title: heading.
        x: the figure of the runs on the horizontal axis, see `convatlas.studies.claims`; None where the plan gives
            numbers.
        x_title: title of that axis; None takes the figure's own.
        y: the figure of the runs on the vertical axis.
        log: which of the axes `x` and `y` are logarithmic.
        curves: ours.
        printed: those that the lecture prints: title and points, in its own units.
    """

    title: str
    x: str | None
    x_title: str | None
    y: str
    log: frozenset[str]
    curves: tuple[Curve, ...]
    printed: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]


@dataclass(frozen=True)
class Study:
    """One comparison: its plan and its results."""

    name: str
    title: str
    question: str
    source: str
    scale: str
    command: str
    printed: Mapping[str, Any]
    claims: tuple[Claim, ...]
    deviations: tuple[str, ...]
    figures: tuple[LectureFigure, ...]
    grading: Grading | None
    variants: tuple[Variant, ...] = field(repr=False)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The variants by task and data set, in the order in which the plan first names each pair."""
        pairs = list(dict.fromkeys((variant.task, variant.data) for variant in self.variants))
        ordered = sorted(self.variants, key=lambda variant: pairs.index((variant.task, variant.data)))
        grouped = groupby(ordered, key=lambda variant: (variant.task, variant.data))
        return tuple(Group(task, data, tuple(variants), self.grading) for (task, data), variants in grouped)

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


def read_studies(plan: Path, runs: Path) -> list[Study]:
    """Read every study of the folder `plan`, by name.

    Raises:
        UserError: the folder holds none, or one of its files is not readable.
    """
    files = sorted(plan.glob("*.yaml"))
    if not files:
        raise UserError(f"{plan} holds no study; {PLAN_AGAIN}")
    return [read_study(file, runs) for file in files]


def read_study(study_file: Path, runs: Path) -> Study:
    """Read the plan of a study and what its runs left in `runs/<study>/<variant>/seed=<n>/`.

    A seed without `metrics.json` is one that has not finished, or that failed where it has `failure.json`; every other
    file may be missing, too.

    Raises:
        UserError: the plan or a result is not readable.
    """
    plan = read_yaml(study_file, PLAN_AGAIN)
    if not isinstance(plan, dict) or not plan.get("variants"):
        raise UserError(f"{study_file} names no variants; {PLAN_AGAIN}")
    name = str(plan.get("name") or study_file.stem)
    return Study(
        name=name,
        title=str(plan.get("title") or name),
        question=str(plan.get("question") or ""),
        source=str(plan.get("source") or ""),
        scale=str(plan.get("scale") or ""),
        command=str(plan.get("command") or ""),
        printed=plan.get("printed") or {},
        claims=tuple(_read_claim(claim, study_file) for claim in plan.get("claims") or ()),
        deviations=tuple(str(deviation) for deviation in plan.get("deviations") or ()),
        figures=tuple(_read_figure(figure) for figure in plan.get("figures") or ()),
        grading=_read_grading(plan.get("grading")),
        variants=_read_variants(plan, study_file.with_suffix(""), runs / name),
    )


def _read_variants(plan: Mapping[str, Any], resolved: Path, runs: Path) -> tuple[Variant, ...]:
    """Read the variants of a plan: their resolved configs from `resolved`, their runs from `runs`."""
    planned = {str(key): entry or {} for key, entry in plan["variants"].items()}
    titles = _unique_titles(planned)

    def variant(key: str) -> Variant:
        entry, config = planned[key], read_yaml(resolved / f"{key}.yaml", PLAN_AGAIN)["config"]
        seeds = tuple(config.get("seeds") or plan.get("seeds") or ())
        folders = {seed: runs / key / f"seed={seed}" for seed in seeds}
        found = (_read_seed(seed, folder) for seed, folder in folders.items())
        finished = tuple(run for run in found if run is not None)
        unfinished = set(seeds) - {run.seed for run in finished}
        failures = {seed: error for seed in seeds if seed in unfinished and (error := _read_failure(folders[seed]))}
        prepared = config["data"].get("prepared")
        return Variant(
            key=key,
            title=titles[key],
            note=str(entry.get("note") or ""),
            overrides=tuple(str(override) for override in entry.get("overrides") or ()),
            task=config["data"]["task"],
            data=config["data"]["name"],
            prepared=Path(prepared) if prepared else None,
            about=in_current_form(config).get("about") or {},
            seeds=seeds,
            runs=finished,
            failures=failures,
        )

    return tuple(variant(key) for key in planned)


def _read_claim(entry: Any, study_file: Path) -> Claim:
    if not isinstance(entry, Mapping):
        return Claim(str(entry), (), "")
    comparisons = tuple(read_claim(str(text), str(study_file)) for text in entry.get("holds") or ())
    return Claim(str(entry.get("says") or ""), comparisons, str(entry.get("note") or ""))


def _read_figure(entry: Mapping[str, Any]) -> LectureFigure:
    """Read a figure as `convatlas.studies.planning` writes it to the plan."""
    curves = (
        Curve(title, tuple((point["variant"], point["part"], point["x"]) for point in points))
        for title, points in entry["curves"].items()
    )
    printed = ((title, tuple((x, y) for x, y in points)) for title, points in entry["printed"].items())
    return LectureFigure(
        title=entry["title"],
        x=entry["x"],
        x_title=entry["x_title"],
        y=entry["y"],
        log=frozenset(entry["log"]),
        curves=tuple(curves),
        printed=tuple(printed),
    )


def _read_grading(entry: Mapping[str, Any] | None) -> Grading | None:
    if not entry:
        return None
    points = sorted(((float(least), float(points)) for least, points in entry["points"].items()), reverse=True)
    return Grading(entry["metric"], tuple(points))


def _unique_titles(planned: Mapping[str, Any]) -> dict[str, str]:
    """Give each variant its title, with its key behind it where two share one."""
    titles = {key: str(entry.get("title") or key) for key, entry in planned.items()}
    count = Counter(titles.values())
    return {key: title if count[title] == 1 else f"{title} ({key})" for key, title in titles.items()}


def _read_seed(seed: int, folder: Path) -> SeedRun | None:
    if not (folder / "metrics.json").is_file():
        return None
    files = {name: folder / f"{name}.json" for name in ("metrics", "timing", "environment")}
    found = {name: read_json(path, RUN_AGAIN) if path.is_file() else {} for name, path in files.items()}
    history = folder / "history.csv"
    return SeedRun(seed=seed, folder=folder, history=_read_history(history) if history.is_file() else {}, **found)


def _read_failure(folder: Path) -> str:
    """Return the sentence that a failed training left; nothing where there is none."""
    path = folder / "failure.json"
    if not path.is_file():
        return ""
    found = read_json(path, RUN_AGAIN)
    if not isinstance(found, dict) or not found.get("error"):
        raise UserError(f"{path} does not say what failed; {RUN_AGAIN}")
    return str(found["error"])


def _read_history(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    try:
        return {
            name: [float(value) if value else math.nan for value in column] for name, *column in zip(*rows, strict=True)
        }
    except ValueError as error:
        raise UserError(f"{path} is not a table of numbers; {RUN_AGAIN}") from error
