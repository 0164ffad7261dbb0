"""`python -m convatlas.search search=fbnet_dnas [data=digits] [seed=0]`: one architecture search, with its report."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

from convatlas.cli import run_hydra

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Search as the command line says, and print where the report lies."""
    from omegaconf import OmegaConf

    from convatlas.search.config import read_search

    plain: Any = OmegaConf.to_container(config, resolve=True)
    plain.pop("hydra", None)
    if plain["output_dir"] is None:
        plain["output_dir"] = f"searches/{plain['search']['name']}"
    run = read_search(plain)
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # an orderly end: KILLED in MLflow
    from convatlas.search.driver import run_search

    print(run_search(run) / "report.html")


if __name__ == "__main__":
    run_hydra(main, "search")
