"""`python -m convatlas.atlas`: reports/atlas/, the pages on which every net of conf/model can be seen.

Nets are drawn from their modules; results are those that the runs of the plan left. Where the studies were tracked,
MLflow gets the pages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from convatlas.atlas.keeping import anatomies
from convatlas.atlas.lineage import read_lineage
from convatlas.atlas.nets import read_nets
from convatlas.core.cli import read_options, run
from convatlas.core.config import Section
from convatlas.core.folders import written_folder
from convatlas.core.imports import quick_imports

PLAN, RUNS, ATLAS = Path("plan"), Path("runs"), Path("reports", "atlas")


def main() -> None:
    """Write the atlas."""
    read_options(Section, sys.argv[1:])
    nets = read_nets()
    with quick_imports():
        drawn = anatomies(nets, processes=min(4, os.cpu_count() or 1))
        from convatlas.atlas.pages import write_atlas
        from convatlas.reporting.reading import read_studies

    studies = read_studies(PLAN, RUNS) if any(PLAN.glob("*.yaml")) else []
    with written_folder(ATLAS, "atlas", "folder") as partial:
        write_atlas(partial, nets, drawn, read_lineage(), studies)
    print(ATLAS / "index.html")


if __name__ == "__main__":
    run(main)
