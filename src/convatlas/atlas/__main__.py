"""`python -m convatlas.atlas`: reports/atlas/, the pages on which every net of conf/model can be seen.

Nets are drawn from their modules; results are those that the runs of the plan left. Where the studies were tracked,
MLflow gets the pages.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convatlas.atlas.keeping import anatomies
from convatlas.atlas.lineage import read_lineage
from convatlas.atlas.nets import read_nets
from convatlas.core.cli import print_message, read_options, run
from convatlas.core.config import Section
from convatlas.core.errors import UserError
from convatlas.core.folders import written_folder
from convatlas.core.imports import quick_imports
from convatlas.studies.planning import read_tracking

if TYPE_CHECKING:
    from convatlas.reporting.study import Study

PLAN, RUNS, ATLAS = Path("plan"), Path("runs"), Path("reports", "atlas")
VERDICTS = Path("docs", "studies", "verdicts.json")


class Options(Section):
    """There are none."""


def main() -> None:
    """Write the atlas."""
    read_options(Options, sys.argv[1:])
    nets, lineage = read_nets(), read_lineage()
    known = {net for names in lineage.members(nets).values() for net in names}
    for net in nets.keys() - known:
        print_message(
            f"conf/model/{net}.yaml is not in the atlas: name its family in src/convatlas/atlas/lineage.yaml."
        )
    nets = {net: nets[net] for net in nets if net in known}
    with quick_imports():
        drawn = anatomies(nets, processes=min(4, os.cpu_count() or 1))
        from convatlas.atlas.pages import write_atlas
        from convatlas.reporting.reading import read_studies
        from convatlas.reporting.study_pages import all_findings

    studies = read_studies(PLAN, RUNS) if any(PLAN.glob("*.yaml")) else []
    found = all_findings(VERDICTS, [study for study in studies if study.runs_finished])
    with written_folder(ATLAS, "atlas", "folder") as partial:
        write_atlas(partial, nets, drawn, lineage=lineage, studies=studies, found=found)
    print(ATLAS / "index.html")
    publish(studies)


def publish(studies: Sequence[Study]) -> None:
    """Put the atlas into MLflow; a store that does not take it is reported and costs nothing else."""
    if not studies:
        return
    first = studies[0]
    tracking = read_tracking(f"{first.name}/{first.variants[0].key}")["tracking"]
    if not tracking["enabled"]:
        return
    from convatlas.tracking.reports import publish_atlas

    try:
        publish_atlas(ATLAS, [study.name for study in studies], tracking["uri"])
    except UserError as error:
        print_message(f"{error} The atlas is complete, only MLflow does not have it.")


if __name__ == "__main__":
    run(main)
