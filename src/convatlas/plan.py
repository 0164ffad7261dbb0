"""`python -m convatlas.plan [study=a,b|all] [scale=laptop] [seeds=0,1,2] [search=fbnet_dnas]`: writes params.yaml.

params.yaml is what dvc.yaml's templates read: small, committed, equal to what this command writes without arguments.
Seeds and scale in it may be edited by hand, and `overrides` apply to every run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from convatlas.cli import read_options, run
from convatlas.config import Section
from convatlas.files import write_yaml
from convatlas.planning import make_plan, study_names

HEADER = """Written by `python -m convatlas.plan`; `python -m convatlas.plan study=... scale=...` writes another plan.
Seeds, scale and overrides may be edited here; `dvc repro` then trains what that changes, and nothing else."""

AsList = BeforeValidator(lambda value: value if isinstance(value, list) else [value])


class Options(Section):
    """What the command line may say."""

    study: Annotated[list[str], AsList] = Field(default=["overview"])
    scale: str = "laptop"
    seeds: Annotated[list[int], AsList] | None = None
    overrides: Annotated[list[str], AsList] = Field(default=[])
    search: Annotated[list[str], AsList] = Field(default=[])
    """Architecture searches, each a stage; those whose findings a study trains are there by themselves."""


def main() -> None:
    """Write params.yaml for the studies and the scale that the command line names."""
    options = read_options(Options, sys.argv[1:])
    studies = study_names() if options.study == ["all"] else options.study
    plan = make_plan(studies, options.scale, options.seeds, options.overrides, options.search)
    write_yaml(Path("params.yaml"), plan, HEADER)
    searched = f", searches: {', '.join(plan['searches'])}" if plan["searches"] else ""
    print(f"params.yaml: {len(plan['runs'])} runs of {', '.join(studies)} at scale {options.scale}{searched}")


if __name__ == "__main__":
    run(main)
