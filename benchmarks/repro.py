"""What DVC, the plan and the report cost without any training: `python benchmarks/repro.py [--runs 10 100 500]`.

In a copy of the project, a study of so many variants is planned and resolved. One run is trained; copies of its folder
stand for the runs of all variants. Then come the report of the study, that of everything with summary and index, and a
`dvc repro` that has nothing to do, for which the aim is 5 seconds. `--quick` does it with 3 runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
QUICK = "[recipe.epochs=2,trainer.threads=1,trainer.limit_batches=2,tracking=none]"


def main() -> None:
    """Measure each number of runs in a project of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--quick", action="store_true", help="3 runs")
    options = parser.parse_args()
    steps = ("plan", "resolve", "report", "all reports", "no-op dvc repro")
    print("seconds  " + "".join(f"{step:>18}" for step in steps))
    for runs in [3] if options.quick else options.runs:
        with tempfile.TemporaryDirectory() as name:
            seconds = measured(Path(name), runs)
        print(f"{runs:4d} runs" + "".join(f"{seconds[step]:18.1f}" for step in steps), flush=True)


def measured(folder: Path, runs: int) -> dict[str, float]:
    """Return the seconds of each step."""
    make_project(folder, runs)
    python = sys.executable
    seconds = {"plan": timed(folder, python, "-m", "convatlas.plan", "study=many", "seeds=[0]", f"overrides={QUICK}")}
    timed(folder, "dvc", "repro", "prepare")
    seconds["resolve"] = timed(folder, "dvc", "repro", "resolve")
    timed(folder, python, "-m", "convatlas.train", "--from-plan", "many/variant_0")
    for number in range(1, runs):
        copy_run(folder / "runs" / "many", number)
    seconds["report"] = timed(folder, python, "-m", "convatlas.report", "many")
    seconds["all reports"] = timed(folder, python, "-m", "convatlas.report")
    timed(folder, "dvc", "commit", "--force", "--quiet")
    start = time.perf_counter()
    printed = run(folder, "dvc", "repro")
    seconds["no-op dvc repro"] = time.perf_counter() - start
    if "Running stage" in printed:
        sys.exit(f"the pipeline was not up to date:\n{printed}")
    return seconds


def make_project(folder: Path, runs: int) -> None:
    """Copy the project, with a study of so many variants that differ in their learning rate."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("dvc.yaml", "requirements.lock", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    study = {
        "name": "many",
        "title": "Many runs",
        "question": "How long does the pipeline take around them?",
        "source": "a benchmark",
        "overrides": {"laptop": ["data=digits", "recipe=laptop", "model=lenet5_modern"]},
        "variants": {
            f"variant_{n}": {"title": f"Variant {n}", "overrides": [f"recipe.optimizer.lr={0.05 + n / 1e5:.5f}"]}
            for n in range(runs)
        },
        "printed": {},
        "claims": [],
        "deviations": [],
    }
    (folder / "conf" / "study" / "many.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    timed(folder, "git", "init", "--quiet")
    timed(folder, "dvc", "init", "--quiet")


def copy_run(study: Path, number: int) -> None:
    """Let the run of the first variant stand for another one."""
    shutil.copytree(study / "variant_0", study / f"variant_{number}")
    metrics = study / f"variant_{number}" / "seed=0" / "metrics.json"
    metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "variant": f"variant_{number}"}))


def timed(folder: Path, *command: str) -> float:
    """Run a command that must succeed and return its seconds."""
    start = time.perf_counter()
    run(folder, *command)
    return time.perf_counter() - start


def run(folder: Path, *command: str) -> str:
    """Run a command that must succeed and return what it printed."""
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    """Take the copy's code instead of the installed one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PYTHONPATH": str(folder / "src"), "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


if __name__ == "__main__":
    main()
