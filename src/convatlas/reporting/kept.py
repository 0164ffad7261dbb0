"""Reports that pile up: beside its pages each keeps the plan that it was written from, and stays while it has runs.

A report of runs that belong to no plan has one made of their own configurations.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convatlas.core.composing import read_run
from convatlas.core.config import RunConfig
from convatlas.core.digests import flat
from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml, write_yaml
from convatlas.core.folders import check_replaceable, written_folder
from convatlas.core.record import RunRecord
from convatlas.core.targets import check_trusted

__all__ = ["keep_plan", "kept_plans", "plan_of_runs", "remove_without_runs"]

PLAN = "plan"
"""The folder beside a report's pages that has its plan, as `plan/` has it."""
ALIKE = ("study", "variant", "seeds", "output_dir", "work_dir", "overwrite", "about", "tracking", "loggers")
"""Sections that do not set runs apart."""
MOST_WORDS = 3
"""Settings that a title of a run names."""


def keep_plan(study_file: Path, report: Path) -> None:
    """Copy the plan of a study beside its report, unless it is read from there."""
    target = report / PLAN
    if study_file.parent == target:
        return
    with written_folder(target, "report", "reports") as partial:
        shutil.copy2(study_file, partial / study_file.name)
        shutil.copytree(study_file.with_suffix(""), partial / study_file.stem)


def kept_plans(reports: Path) -> dict[str, Path]:
    """Return the plans that were kept below `reports/studies`, by study."""
    found = sorted(reports.glob(f"studies/*/{PLAN}/*.yaml"))
    return {file.stem: file for file in found if file.stem == file.parents[1].name}


def remove_without_runs(plans: Mapping[str, Path], runs: Path) -> dict[str, Path]:
    """Delete the kept reports that have no finished run any more, and return the others.

    Raises:
        UserError: something lies in such a folder that is none of a report's.
    """
    left = {}
    for name, plan in plans.items():
        values = read_yaml(plan, "delete the folder of the report.")
        folder = runs / str((values or {}).get("runs") or name)
        if any(folder.glob("*/seed=*/metrics.json")):
            left[name] = plan
            continue
        report = plan.parents[1]
        ours = {"index.html", "study.html", "table.csv", "table.md", "table.tex", "claims.json", PLAN}
        if strange := sorted(path.name for path in report.iterdir() if path.name not in ours):
            raise UserError(f"{report} is of runs that are gone, and holds {strange[0]}, which is yours; move it away.")
        check_replaceable(report / PLAN, "report", "reports")
        shutil.rmtree(report)
    return left


# ---- runs without a plan --------------------------------------------------------------------------------------------


def plan_of_runs(folders: Sequence[Path], runs: Path, report: Path) -> Path:
    """Write a plan of runs that were trained by themselves, beside their report; returns its file.

    Args:
        folders: `runs/<study>/<variant>`, all of one study.
        runs: the folder `runs`.
        report: the folder of the report; its name is that of the study in it.

    Raises:
        UserError: a folder holds no finished run, or they lie elsewhere.
    """
    configs = {folder.name: _config(folder) for folder in folders}
    titles = titles_of(configs)
    seeds = {name: _seeds(folder) for name, folder in zip(configs, folders, strict=True)}
    plan = {
        "name": report.name,
        "runs": folders[0].parent.relative_to(runs).as_posix(),
        "title": f"Runs of {folders[0].parent.name}",
        "question": "Runs that were trained by themselves, beside each other.",
        "seeds": sorted({seed for found in seeds.values() for seed in found}),
        "variants": {name: {"title": titles[name]} for name in configs},
    }
    with written_folder(report / PLAN, "report", "reports") as partial:
        write_yaml(partial / f"{report.name}.yaml", plan)
        for name, config in configs.items():
            values = {**config.plain(), "seeds": seeds[name]}
            write_yaml(partial / report.name / f"{name}.yaml", {"config": values})
    return report / PLAN / f"{report.name}.yaml"


def titles_of(configs: Mapping[str, RunConfig]) -> dict[str, str]:
    """Name each run by its net and the settings that set it apart from the other runs."""
    nets = {name: str(config.about.title or name) for name, config in configs.items()}
    values = {name: _settings(config) for name, config in configs.items()}
    differing = [
        key for key in dict.fromkeys(k for each in values.values() for k in each) if _differs(key, values.values())
    ]
    titles = {}
    for name, net in nets.items():
        others = [values[other] for other in nets if nets[other] == net]
        apart = [key for key in differing if _differs(key, others)]
        words = [f"{key.rpartition('.')[2]} {values[name].get(key)}" for key in apart[:MOST_WORDS]]
        titles[name] = ", ".join([net, *words])
    return titles


def _settings(config: RunConfig) -> dict[str, Any]:
    return flat({key: value for key, value in config.plain().items() if key not in ALIKE})


def _differs(key: str, values: Any) -> bool:
    return len({str(each.get(key)) for each in values}) > 1


def _seeds(folder: Path) -> list[int]:
    return [RunRecord.read(path.parent).metrics.seed for path in sorted(folder.glob("seed=*/metrics.json"))]


def _config(folder: Path) -> RunConfig:
    files = sorted(folder.glob("seed=*/config.yaml"))
    if not files:
        raise UserError(f"{folder} holds no finished run; name folders such as runs/adhoc/lenet5-digits-1a2b3c4d.")
    values = read_yaml(files[0], "train the run again.")
    check_trusted(values, str(files[0]))
    return read_run(values, str(files[0]))
