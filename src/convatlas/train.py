"""`python -m convatlas.train model=... data=... recipe=...`: one training, or several with `--multirun`.

`python -m convatlas.train --from-plan overview/lenet5` trains exactly what `plan/overview/lenet5.yaml` says, all its
seeds; that is what a stage of the pipeline runs.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from convatlas.core.cli import GOES_ON, run, run_hydra
from convatlas.core.errors import UserError
from convatlas.core.imports import quick_imports
from convatlas.core.processes import die_with_parent

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Train what the command line composed."""
    from hydra.core.hydra_config import HydraConfig

    from convatlas.core.composing import run_config
    from convatlas.studies.architectures import with_architecture

    checked = with_architecture(run_config(config, HydraConfig.get().runtime.choices["model"]))
    with quick_imports():
        from convatlas.core.processes import rank
        from convatlas.training.run import train

    folders = train(checked, strict=True)
    if rank() == 0:
        print("\n".join(str(folder) for folder in folders))


def from_plan(key: str) -> None:
    """Train one run of the plan."""
    die_with_parent()
    from convatlas.core.composing import read_run
    from convatlas.core.files import read_yaml
    from convatlas.core.targets import check_trusted
    from convatlas.studies.architectures import with_architecture

    with quick_imports():
        from convatlas.training.run import train

    file = Path("plan") / f"{key}.yaml"
    planned = read_yaml(file, "run `dvc repro resolve`.")
    values = planned.get("config") if isinstance(planned, dict) else None
    check_trusted(values, str(file))
    train(with_architecture(read_run(values, str(file))), strict=False)


def command() -> None:
    """Run the command line, as `python -m convatlas.train` or `convatlas-train`, whose words a shell completes."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, when it is killed, leaves its processes behind
        die_with_parent(signal.SIGKILL)
    if "--from-plan" in sys.argv:
        if len(sys.argv) != 3:
            run(lambda: (_ for _ in ()).throw(UserError("--from-plan takes one key, for example overview/lenet5.")))
        run(lambda: from_plan(sys.argv[2]), interrupted=GOES_ON)
    run_hydra(main, "train", interrupted=GOES_ON)


if __name__ == "__main__":
    command()
