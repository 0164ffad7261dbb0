"""Where a study's figures come from, and what a reader must know before comparing them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convatlas.core.record import Environment
from convatlas.reporting.statistics import sampling_error
from convatlas.reporting.study import Group, SeedRun, Study
from convatlas.reporting.wording import THIN_SPACE, count, listed, metric_text

SHOWN_UNFINISHED = 12
"""Unfinished variants named one by one; more are only counted."""


@dataclass(frozen=True)
class Origin:
    """What the runs say about their code, data and machine.

    Attributes:
        commits: each commit with the number of runs from it.
        fingerprints: each data set with its fingerprints.
        environment: the plain entries of `environment.json` with their values over all runs.
        packages: the versions of packages over all runs.
    """

    commits: tuple[tuple[str, int], ...]
    fingerprints: tuple[tuple[str, tuple[str, ...]], ...]
    environment: tuple[tuple[str, str], ...]
    packages: tuple[tuple[str, str], ...]


def origin(study: Study) -> Origin:
    """Sum up where the finished runs of a study come from."""
    environments = [run.record.environment for group in study.groups for run in group.runs]
    return Origin(
        commits=tuple(_distinct(map(commit_of, environments)).items()),
        fingerprints=tuple((name, tuple(found)) for name, found in _fingerprints(study).items()),
        environment=_merged([each.machine for each in environments]),
        packages=_merged([each.packages for each in environments]),
    )


def commit_of(environment: Environment) -> str | None:
    """Return the commit, with a word on changes that it does not have; None where there is none."""
    return f"{environment.commit} with changes" if environment.commit and environment.dirty else environment.commit


def _fingerprints(study: Study) -> dict[str, dict[str, int]]:
    return {
        name: _distinct(r.record.metrics.data_fingerprint for g in study.groups if g.data == name for r in g.runs)
        for name in dict.fromkeys(group.data for group in study.groups)
    }


def cautions(study: Study) -> list[str]:
    """List what a reader must know before comparing: failed or missing runs, unclean code, mixed data or machines.

    Runs of several commits are no caution: `dvc repro` trains anew only what a change concerns.
    """
    runs = [run for group in study.groups for run in group.runs]
    found = [_failed(study), _unfinished(study)]
    if dirty := sum(bool(run.record.environment.dirty) for run in runs):
        found.append(f"{count(dirty, 'run')} used code with changes that are in no commit.")
    for name, fingerprints in _fingerprints(study).items():
        if len(fingerprints) > 1:
            found.append(f"The runs on {name} saw {len(fingerprints)} versions of it: do not compare their figures.")
    found += [
        f"The runs on {group.data} come from different machines, numbers of threads or versions of PyTorch: "
        "do not compare their times."
        for group in study.groups  # times are compared within a group alone
        if len(_distinct(_machine(run) for run in group.runs)) > 1
    ]
    kinds = _distinct(_kind(run) for run in runs)
    if len(kinds) > 1:
        found.append(
            f"The runs come from {len(kinds)} kinds of hardware ({listed(list(kinds))}): one seed has other bits on "
            "each, and small differences of scores may come from that."
        )
    if runs and all(len(variant.seeds) == 1 for variant in study.variants):
        found.append("Every variant was trained once: its spread is not known, and small differences mean nothing.")
    return [caution for caution in found if caution]


def sampling_note(group: Group) -> str:
    """Say how coarse a test split is, for the share of right answers; nothing where that is not the score."""
    images = group.test_images if group.score == "accuracy" else None
    means = [found.mean for variant in group.variants if (found := variant.test(group.score))]
    shares = [mean for mean in means if 0 <= mean <= 1]
    if not images or not shares:
        return ""
    note = f"The test split has {images:,} images: one of them is {100 / images:.2g} points."
    best = max(shares)
    error = 100 * sampling_error(best, images)
    if error:
        note += f" Other images from the same source would move {metric_text(group.metric, best)}{THIN_SPACE}% by about"
        note += f" {error:.2g} points (one standard error), which the spread over seeds does not contain."
    return note


def _unfinished(study: Study) -> str:
    missing = [(variant.title, variant.not_run) for variant in study.variants if variant.not_run]
    if not missing:
        return ""
    total = sum(len(seeds) for _, seeds in missing)
    verb = "has" if total == 1 else "have"
    return f"{total} of {count(study.runs_planned, 'run')} {verb} no result: {_named(missing)}."


def _failed(study: Study) -> str:
    failed = [(variant.title, tuple(variant.failures)) for variant in study.variants if variant.failures]
    if not failed:
        return ""
    return f"{study.runs_failed} of {count(study.runs_planned, 'run')} failed: {_named(failed)}."


def _named(variants: list[tuple[str, tuple[int, ...]]]) -> str:
    named = [f"{title} (seed {listed([str(seed) for seed in seeds])})" for title, seeds in variants]
    if len(named) > SHOWN_UNFINISHED:
        named = [*named[:SHOWN_UNFINISHED], f"{len(named) - SHOWN_UNFINISHED} more variants"]
    return listed(named)


def _machine(run: SeedRun) -> str | None:
    environment = run.record.environment
    parts = [environment.machine.get(key) for key in ("platform", "processor", "processor_cores", "gpu", "threads")]
    return str([*parts, environment.packages.get("torch")]) if environment.machine else None


def _kind(run: SeedRun) -> str | None:
    """Return what computed a run: the GPU, or the model of the CPU with its instructions; None where it is not told."""
    machine = run.record.environment.machine
    if machine.get("gpu"):
        return str(machine["gpu"])
    if not machine.get("processor"):
        return None
    return f"{machine['processor']}, {machine.get('instructions')}"


def _distinct(values: Any) -> dict[str, int]:
    """Count each value that is there, in the order in which they first appear."""
    counts: dict[str, int] = {}
    for value in values:
        if value is not None:
            counts[str(value)] = counts.get(str(value), 0) + 1
    return counts


def _merged(entries: list[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    names = dict.fromkeys(name for entry in entries for name in entry)
    merged = ((name, ", ".join(_distinct(entry.get(name) for entry in entries))) for name in names)
    return tuple((name, values) for name, values in merged if values)
