"""`python -m convatlas.tune model=lenet5 'recipe.optimizer.lr=tag(log,interval(1e-3,1))' tune.trials=30`.

Searches hyper-parameters with Optuna. What is searched is written as Hydra writes sweeps; all else is as in `train`:

    recipe.optimizer.lr=tag(log,interval(1e-3,1))     a real number, here with even chances for every order of magnitude
    model.depth=int(interval(2,6))                    a whole number, both ends included
    model.width=range(4,17,4)                         4, 8, 12, 16
    recipe/schedule=choice(cosine,multi_step)         one of these; `recipe/schedule=cosine,multi_step` says the same

A trial's score is the best validation score of its training; the test split is never used. The same command goes
on where a killed one stopped. Everything lies in `output_dir`: `tune.db` (Optuna's storage), `trials.csv`, `best.yaml`.
In MLflow the search is a run, and every trial a child of it.
"""

from __future__ import annotations

import sys

from convatlas.core.answers import answering, take_answering
from convatlas.core.cli import GOES_ON, run
from convatlas.core.composing import current_overrides, without_flags
from convatlas.core.imports import quick_imports


def main() -> None:
    """Search what the command line names, and print the best trial's command."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    with quick_imports():
        from convatlas.training.tuning import read_search, search

    options, words = take_answering(sys.argv[1:])
    with answering(options) as answer:
        best = search(read_search(current_overrides(without_flags(words))))
        command = f"python -m convatlas.train {best}"
        answer(command, {"overrides": best, "train": command})


if __name__ == "__main__":
    run(main, "tune", interrupted=GOES_ON)
