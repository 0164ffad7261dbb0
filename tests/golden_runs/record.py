"""Run the trainings of runs.yaml and keep their results: `python tests/golden_runs/record.py` rewrites record.json.

Only what a user has is used: the arguments of `convatlas.prepare` and `convatlas.train`, and the files of a run's
folder. So the record outlives every change inside the package.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORD = HERE / "record.json"
TABLE = yaml.safe_load((HERE / "runs.yaml").read_text())
RUNS: dict[str, dict[str, Any]] = TABLE["runs"]
PACKAGES = ("torch", "torchvision", "timm", "torchmetrics", "numpy", "scikit-image")


def environment() -> dict[str, str]:
    """Return what decides the bits of a result besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    packages = {name: version(name) for name in PACKAGES}
    return {"cpu": cpu, "cpu_capability": torch.backends.cpu.get_cpu_capability(), **packages}


class Runner:
    """Trains the runs of the table below a folder, each once, with the data and the weights they need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str) -> Path:
        """Train a run, unless it has been, and return its folder."""
        output = self.folder / name
        if output.exists():
            return output
        run = RUNS[name]
        data = run.get("data", "digits")
        options = [*self._prepared(data), *TABLE["always"], *run["options"], f"output_dir={output}"]
        if "weights_of" in run:
            options.append(f"model.weights='{self.run(run['weights_of'])}'")
        if run.get("killed"):
            self._kill_at_first_checkpoint(output, options)
        if run.get("outside"):
            done = subprocess.run(_command(options), capture_output=True, text=True, check=False, **_outside())
            assert done.returncode == 0, done.stdout + done.stderr
        else:
            enter("train", *options)
        return output

    def result(self, name: str) -> dict[str, Any]:
        """Return the result of every seed of a run."""
        return {seed.name: seed_result(seed) for seed in sorted(self.run(name).glob("seed=*"))}

    def _prepared(self, data: str) -> list[str]:
        folder = self.folder / "prepared" / data
        options = [*TABLE["prepared"][data], f"data.prepared={folder}"]
        if not folder.exists():
            enter("prepare", *options, f"page={self.folder / data}.html")
        return options

    def _kill_at_first_checkpoint(self, output: Path, options: list[str]) -> None:
        with (self.folder / "killed.txt").open("w") as log:
            process = subprocess.Popen(_command(options), stdout=log, stderr=log, **_outside())
            while process.poll() is None and not list(output.rglob("*.ckpt")):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL, Path(log.name).read_text()
        assert not list(output.rglob("metrics.json")), "the training ended before it could be killed"


def _command(options: list[str]) -> list[str]:
    return [sys.executable, "-m", "convatlas.train", *options]


def _outside() -> dict[str, Any]:
    return {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}


def enter(entry_point: str, *arguments: str) -> None:
    """Run `python -m convatlas.<entry point>` in this process, which saves the seconds of a start."""
    before = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = [f"{entry_point}.py", *arguments]
    GlobalHydra.instance().clear()
    printed = io.StringIO()
    status: int | str | None = 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            runpy.run_module(f"convatlas.{entry_point}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.argv = before[0]
        signal.signal(signal.SIGTERM, before[1])
    assert not status, printed.getvalue()


def seed_result(folder: Path) -> dict[str, Any]:
    """Read what the training of a seed computed: its history, its test, its predictions and the bits of its weights."""
    with (folder / "history.csv").open() as file:
        history = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    metrics = json.loads((folder / "metrics.json").read_text())
    parts = {f"{part}/{key}": value for part, test in metrics.get("parts", {}).items() for key, value in test.items()}
    return {
        "history": history,
        "best_epoch": metrics["best_epoch"],
        "test": {**metrics["test"], **parts},
        "predictions_sha256": predictions_sha256(folder / "predictions.parquet"),
        "weights_sha256": {name: weights_sha256(folder / name) for name in ("best.ckpt", "last.ckpt")},
    }


def predictions_sha256(file: Path) -> dict[str, str]:
    """Return the digest of every column of the predictions on the test split."""
    columns = pq.read_table(file).to_pydict() if file.exists() else {}
    return {name: hashlib.sha256(repr(values).encode()).hexdigest() for name, values in columns.items()}


def weights_sha256(checkpoint: Path) -> str:
    """Return the digest of a net's names, types, shapes and bytes, in the order of the names."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    digest = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith("net.")):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Train every run that has a record of its own, and write the record."""
    os.chdir(ROOT)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder))
        for name in (name for name, run in RUNS.items() if "equals" not in run):
            began = time.perf_counter()
            results[name] = runner.result(name)
            print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
    RECORD.write_text(json.dumps({"environment": environment(), "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
