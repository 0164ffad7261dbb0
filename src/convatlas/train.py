"""`python -m convatlas.train model=... data=... recipe=...`: one training, or several with `--multirun`.

It ends with a table of what came out; `format=json` prints that as JSON, `-q` nothing.
`python -m convatlas.train --from-plan overview/lenet5` trains exactly what `plan/overview/lenet5.yaml` says, all its
seeds; that is what a stage of the pipeline runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.answers import Answer, answering, take_answering
from convatlas.core.cli import GOES_ON, run, run_hydra
from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.imports import quick_imports
from convatlas.core.processes import die_with_parent

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from convatlas.core.config import RunConfig


def main(config: DictConfig) -> tuple[RunConfig, list[Path]]:
    """Train what the command line composed; returns the configuration and the folders of the seeds."""
    from hydra.core.hydra_config import HydraConfig

    from convatlas.core.composing import run_config
    from convatlas.studies.architectures import with_architecture

    checked = with_architecture(run_config(config, HydraConfig.get().runtime.choices["model"]))
    with quick_imports():
        from convatlas.training.run import train

    return checked, train(checked, strict=True)


def answer_of(answer: Answer) -> Callable[[list[tuple[str, tuple[RunConfig, list[Path]]]]], None]:
    """Return what says at the end what came out of one training, or of all jobs of a `--multirun`."""

    def finish(jobs: list[tuple[str, tuple[RunConfig, list[Path]]]]) -> None:
        from convatlas.core.processes import rank
        from convatlas.reporting.endings import run_answers, runs_table, sweep_table

        if rank() > 0:
            return
        found = [(words.split(" "), run_answers(folders)) for words, (_, folders) in jobs]
        (first, *_), config = found, jobs[0][1][0]
        table = sweep_table(found) if jobs[0][0] else runs_table(first[1])
        tracked = f"\n\nIn MLflow: `convatlas ui`, experiment {config.study}." * config.tracking.enabled
        answer(f"\n{table}{tracked}", [run for _, runs in found for run in runs])

    return finish


def from_plan(key: str) -> None:
    """Train one run of the plan: those of its seeds that are not finished."""
    die_with_parent()
    from convatlas.core.files import write_json
    from convatlas.core.processes import rank
    from convatlas.studies.architectures import with_architecture
    from convatlas.studies.planning import FINISHED, read_planned

    with quick_imports():
        from convatlas.reporting.endings import one_line, run_answers
        from convatlas.training.run import train

    config = with_architecture(read_planned(key))
    folders = train(config, strict=False)
    if rank() == 0:
        remove_outdated(config.output_dir, folders)
        write_json(FINISHED / f"{key}.json", {folder.name: digest_of_files(folder) for folder in folders})
        if found := run_answers(folders):
            print(one_line(found))


def remove_outdated(output_dir: Path, folders: Sequence[Path]) -> None:
    """Delete the results of seeds that are no longer asked for and that another configuration or code gave.

    Those of this one stay: they are finished when they are asked for again.
    """
    from convatlas.core.files import read_json
    from convatlas.core.folders import check_replaceable

    def identity(folder: Path) -> dict[str, Any]:
        found = read_json(folder / "identity.json", "delete the folder and train again.")
        return {name: value for name, value in found.items() if name not in ("seed", "weights")}

    current = [identity(folder) for folder in folders if (folder / "identity.json").is_file()]
    for other in set(output_dir.glob("seed=*")) - set(folders):
        if current and (other / "identity.json").is_file() and identity(other) != current[0]:
            try:
                check_replaceable(other, "train", "output_dir")
            except UserError as error:
                print(f"{other} has results of other settings and stays: {error}", file=sys.stderr)
            else:
                shutil.rmtree(other)


def digest_of_files(folder: Path) -> str:
    """Return one digest of what a report reads of a seed: every file but the checkpoints."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".ckpt")
    return digest([[path.relative_to(folder).as_posix(), sha256(path.read_bytes()).hexdigest()] for path in files])


def command() -> None:
    """Run the command line, as `python -m convatlas.train` or `convatlas-train`, whose words a shell completes."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, when it is killed, leaves its processes behind
        die_with_parent(signal.SIGKILL)
    if "--from-plan" in sys.argv:
        if len(sys.argv) != 3:
            run(lambda: (_ for _ in ()).throw(UserError("--from-plan takes one key, for example overview/lenet5.")))
        run(lambda: from_plan(sys.argv[2]), interrupted=GOES_ON)
    options, sys.argv[1:] = take_answering(sys.argv[1:])
    with answering(options) as answer:
        run_hydra(main, "train", interrupted=GOES_ON, finish=answer_of(answer))


if __name__ == "__main__":
    command()
