"""What starting a training costs beside importing its libraries: `python benchmarks/start.py`.

Times two processes in turn: one that imports torch, pytorch-lightning and mlflow and does nothing, and a training
from its command line to its first step, MLflow run included. Aim: at most 1.3 times. `--quick` takes one round of five.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time

IMPORTS = "import torch, pytorch_lightning, mlflow; from mlflow import MlflowClient; import os; os._exit(0)"
PREPARE = """
import runpy, sys
sys.argv = ["prepare", "data=digits", "data.prepared={folder}/digits", "page={folder}/digits.html"]
runpy.run_module("convatlas.prepare", run_name="__main__", alter_sys=True)
"""
FIRST_STEP = """
import os, runpy, sys
from convatlas.core.imports import quick_imports
with quick_imports():  # as the training itself does
    from convatlas.tasks.base import Task
Task.on_train_batch_start = lambda *_: os._exit(0)
sys.argv = ["train", "model=lenet5", "data.prepared={folder}/digits", "output_dir={folder}/run",
            "tracking.uri=sqlite:///{folder}/mlflow.db"]
runpy.run_module("convatlas.train", run_name="__main__", alter_sys=True)
"""
FINISH = """
import runpy, sys
sys.argv = ["train", "model=lenet5", "trainer=debug", "recipe.epochs=1", "output_dir={folder}/finished",
            "data.prepared={folder}/digits", "tracking.uri=sqlite:///{folder}/mlflow.db", "tracking.log_model=false"]
runpy.run_module("convatlas.train", run_name="__main__", alter_sys=True)
"""


def seconds(code: str) -> tuple[float, float]:
    """Return wall and CPU seconds of a Python process that runs the code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    imports, starts = [], []
    with tempfile.TemporaryDirectory() as folder:
        seconds(PREPARE.format(folder=folder))
        seconds(FINISH.format(folder=folder))  # the database is made, and everything is in the disk cache
        for number in range(repeats):
            imports.append(seconds(IMPORTS))
            starts.append(seconds(FIRST_STEP.format(folder=folder).replace("/run", f"/run{number}")))
    for what, place in (("wall", 0), ("processor", 1)):
        one = statistics.median(t[place] for t in imports)
        two = statistics.median(t[place] for t in starts)
        ratio = statistics.median(b[place] / a[place] for a, b in zip(imports, starts, strict=True))
        print(f"{what:<10} imports {one:5.2f} s   start to first step {two:5.2f} s   ratio {ratio:4.2f}")


if __name__ == "__main__":
    main()
