"""Reading studies: what their plans ask for, and what their runs left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from convatlas.core.errors import UserError, first_mistake
from convatlas.core.files import read_yaml
from convatlas.core.record import RunRecord, Speeds, read_failure
from convatlas.reporting.study import Plan, PlanPart, SeedRun, Study, Variant

PLAN_AGAIN = "run `dvc repro resolve`, which writes it."

PartT = TypeVar("PartT", bound=PlanPart)


class _Data(PlanPart):
    name: str
    task: str
    prepared: Path | None = None


class _Config(PlanPart):
    """What a report needs of a variant's configuration."""

    data: _Data
    seeds: tuple[int, ...] = ()
    about: Mapping[str, Any] = Field(default={})
    model: Mapping[str, Any] = Field(default={})


class _Resolved(PlanPart):
    """`plan/<study>/<variant>.yaml`."""

    config: _Config


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
    plan = _checked(Plan, study_file, name=study_file.stem)
    titles = {key: variant.title or key for key, variant in plan.variants.items()}
    count = Counter(titles.values())
    unique = {key: title if count[title] == 1 else f"{title} ({key})" for key, title in titles.items()}
    resolved = study_file.with_suffix("")
    folder = runs / (plan.runs or plan.name)
    speeds = Speeds.of_study(folder)
    variants = (_read_variant(key, title, plan, resolved, folder, speeds=speeds) for key, title in unique.items())
    return Study(plan, tuple(variants))


def _read_variant(key: str, title: str, plan: Plan, resolved: Path, runs: Path, *, speeds: Speeds | None) -> Variant:
    config = _checked(_Resolved, resolved / f"{key}.yaml").config
    seeds = config.seeds or plan.seeds
    folders = {seed: runs / key / f"seed={seed}" for seed in seeds}
    finished = {seed: folder for seed, folder in folders.items() if RunRecord.is_in(folder)}

    def read(seed: int, folder: Path) -> SeedRun:
        record = RunRecord.read(folder)
        return SeedRun(seed, folder, record, speeds.of(f"{key}/seed={seed}", record) if speeds else None)

    failures = {seed: read_failure(folder) for seed, folder in folders.items() if seed not in finished}
    return Variant(
        key=key,
        title=title,
        note=plan.variants[key].note,
        overrides=plan.variants[key].overrides,
        task=config.data.task,
        data=config.data.name,
        prepared=config.data.prepared,
        about=config.about or config.model.get("about") or {},
        seeds=seeds,
        runs=tuple(read(seed, folder) for seed, folder in finished.items()),
        failures={seed: error for seed, error in failures.items() if error},
    )


def _checked(kind: type[PartT], path: Path, **defaults: str) -> PartT:
    """Read a file of the plan; `defaults` stand for keys that it does not have."""
    values = read_yaml(path, PLAN_AGAIN)
    try:
        return kind.model_validate(defaults | values if isinstance(values, dict) else values)
    except ValidationError as error:
        raise UserError(f"{path}: {first_mistake(error)}; {PLAN_AGAIN}") from error
