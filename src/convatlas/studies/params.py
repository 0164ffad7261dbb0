"""params.yaml, which people read and edit, and stages.yaml, which dvc.yaml's templates take from it: what to run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from convatlas.core.config import Section, describe
from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml, write_yaml

__all__ = ["FILE", "STAGES", "Plan", "read_plan", "write_plan"]

FILE, STAGES = Path("params.yaml"), Path("stages.yaml")
OF_STAGES = ("data", "manifests", "searches", "runs")
"""What follows from the rest of a plan; in a file of its own, `dvc exp show` has no column for each of it."""
HEADER = """Written by `python -m convatlas.plan`; `python -m convatlas.plan study=... scale=...` writes another plan.
Seeds, scale and overrides may be edited here; `dvc repro` then trains what that changes, and nothing else."""
STAGES_HEADER = (
    "Written by `python -m convatlas.plan` with params.yaml: what the templates of dvc.yaml are filled with."
)


def _of(kind: type, words: str) -> Callable[[Any], Any]:
    """Return a check of what was written by hand, whose message shows how it is written."""

    def check(value: Any) -> Any:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"write {words}")
        return value

    return check


Seed = Annotated[int, BeforeValidator(_of(int, "a whole number")), Field(ge=0, lt=2**32)]
Override = Annotated[str, BeforeValidator(_of(str, "each override as one text, for example recipe.epochs=2"))]


def _list(example: str) -> BeforeValidator:
    return BeforeValidator(_of(list, f"a list, for example {example}"))


def _mapping() -> BeforeValidator:
    return BeforeValidator(_of(dict, "{} where there is none, or let `python -m convatlas.plan` write it"))


class Plan(Section):
    """What to run. Seeds, scale and overrides may be edited by hand, the rest follows from them."""

    scale: Annotated[str, BeforeValidator(_of(str, "laptop, workstation or paper"))]
    seeds: Annotated[list[Seed], _list("seeds: [0, 1, 2]")]
    overrides: Annotated[list[Override], _list("overrides: [recipe.epochs=2], and overrides: [] for none")]
    studies: Annotated[list[str], _list("studies: [overview]")]
    data: Annotated[dict[str, dict[str, str]], _mapping()]
    manifests: Annotated[dict[str, str], _mapping()]
    """The data sets that are prepared from raw files, whose manifest is taken anew each time."""
    searches: Annotated[dict[str, dict[str, str]], _mapping()]
    runs: Annotated[dict[str, dict[str, str]], _mapping()]
    seeds_of: Annotated[dict[str, Annotated[list[Seed], _list("[0, 1, 2, 3]")]], _mapping()] = Field(default={})
    """The seeds of single runs that have others than `seeds`, which `python -m convatlas.decide` adds."""

    @model_validator(mode="after")
    def _check(self) -> Plan:
        if self.studies and not self.seeds:
            raise ValueError("seeds=[] trains nothing; write at least one, for example seeds: [0]")
        for key, values in (("studies", self.studies), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{key}={values} names one twice; remove it")
        if unknown := set(self.seeds_of) - set(self.runs):
            raise ValueError(f"seeds_of: {min(unknown)} is not in runs; remove it")
        for override in self.overrides:
            if "=" not in override and not override.startswith("~"):
                raise ValueError(f"overrides: {override!r} has no value; write for example recipe.epochs=2")
        return self

    @property
    def command(self) -> str:
        """The command that writes this plan."""
        lists = {"study": self.studies, "scale": [self.scale], "seeds": map(str, self.seeds)}
        words = [f"{key}={','.join(values)}" for key, values in lists.items()]
        words += [f"overrides=[{','.join(self.overrides)}]"] if self.overrides else []
        words += [f"search={','.join(self.searches)}"] if self.searches else []
        return shlex.join(["python", "-m", "convatlas.plan", *words])


REMEDY = "run `python -m convatlas.plan`, which writes it anew."


def write_plan(plan: Mapping[str, Any], path: Path = FILE) -> None:
    """Write params.yaml, and stages.yaml beside it."""
    of_stages = {key: plan[key] for key in OF_STAGES}
    write_yaml(path.with_name(STAGES.name), {"trainings": len(plan["runs"]), **of_stages}, STAGES_HEADER)
    write_yaml(path, {key: value for key, value in plan.items() if key not in OF_STAGES}, HEADER)


def read_plan(path: Path) -> Plan:
    """Read params.yaml, and stages.yaml beside it, whose keys may stand in params.yaml, too.

    Raises:
        UserError: params.yaml is missing, or something in one is not as a plan has it.
    """
    of_stages = path.with_name(STAGES.name)
    values: dict[str, Any] = {}
    for file in (of_stages, path) if of_stages.exists() else (path,):
        found = read_yaml(file, REMEDY)
        if not isinstance(found, dict):
            raise UserError(f"{file} is empty or not a mapping; {REMEDY}")
        values |= found
    values.pop("trainings", None)
    needed = {name for name, field in Plan.model_fields.items() if field.is_required()}
    if missing := sorted(needed - set(values)):
        raise UserError(f"{path}, with {STAGES} beside it, lacks {', '.join(missing)}; {REMEDY}")
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        raise UserError(describe(error, str(path))) from error
