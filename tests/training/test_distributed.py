"""Two processes on the processor: the same images, one folder, one run in MLflow, however they were started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from convatlas.data.prepared import PreparedData
from convatlas.training.run import train
from helpers import ROOT

OPTIONS = ("model=lenet5_modern", "recipe.epochs=2", "recipe.batch_size=128", "trainer.threads=1")
LAUNCHERS = {
    "lightning": [sys.executable, "-m", "convatlas.train"],
    "torchrun": [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "convatlas.train",
    ],
}


def run_distributed(launcher: str, tmp_path: Path, prepared: Path, *more: str) -> Path:
    """Train with two processes in an empty folder and return the run's folder."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    command = [
        *LAUNCHERS[launcher],
        *("trainer=ddp", "trainer.accelerator=cpu", *OPTIONS, f"data.prepared={prepared}", "output_dir=run", *more),
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / "run" / "seed=0"


@pytest.mark.parametrize("launcher", ["lightning", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(launcher, tmp_path, prepared_digits, compose):
    folder = run_distributed(
        launcher, tmp_path, prepared_digits, "tracking.log_model=false", "tracking.system_metrics=false"
    )
    images = len(PreparedData.open(prepared_digits).split("test"))
    assert pd.read_parquet(folder / "predictions.parquet")["index"].tolist() == list(range(images))
    left = {path.name for path in tmp_path.iterdir()} - {"conf"}
    assert left <= {"run", "mlflow.db", "mlflow.db.lock", "mlartifacts"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["seed=0"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("adhoc").experiment_id])
    assert sorted(run.data.tags["convatlas.role"] for run in runs) == ["seed", "variant"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    # The net has no batch norm and every process takes its share of the same batches: the result is that of one
    # process but for the order of summation.
    (alone,) = train(compose(*OPTIONS, folder="alone"), strict=True)
    one, two = (torch.load(f / "last.ckpt", weights_only=True)["state_dict"] for f in (alone, folder))
    assert all(torch.allclose(one[key], two[key], rtol=1e-3, atol=1e-5) for key in one)


@pytest.mark.parametrize(
    "net", ["stochastic_depth_resnet_small", pytest.param("fractalnet_small", marks=pytest.mark.slow)]
)
def test_two_processes_leave_out_the_same_parts(net, tmp_path, prepared_digits):
    """Gradients of a part that one process alone computed would hang or fail; its share would differ by process."""
    small = {
        "stochastic_depth_resnet_small": ["model.depth=14", "model.width=4"],
        "fractalnet_small": ["model.drop_path=mixed", "model.columns=2", "model.widths=[4,4,4]"],
    }
    more = (f"model={net}", *small[net], "recipe.epochs=1", "trainer.limit_batches=4", "tracking=none")
    folder = run_distributed("lightning", tmp_path, prepared_digits, *more)
    history = pd.read_csv(folder / "history.csv")
    [share] = [name for name in history.columns if name.startswith("net/")]
    # The logged share is the mean over processes of the mean over 4 batches: a multiple of a batch's units over 4.
    units = {"net/active_blocks": 6, "net/convolutions_computed": 9}[share]
    assert float(history[share].iloc[0]) * 4 * units == pytest.approx(round(float(history[share].iloc[0]) * 4 * units))


def test_batch_norm_over_two_processes_is_that_of_one(tmp_path, prepared_digits, compose):
    """Gradients, running statistics and weights after two steps, but for the order of summation."""
    options = ("model=resnet_cifar", "model.depth=8", "model.width=4", "recipe.epochs=1", "trainer.limit_batches=2")
    more = (*options, "tracking=none", "recipe.augmentation.crop_padding=0", "recipe.augmentation.rotation_degrees=0")
    folder = run_distributed("lightning", tmp_path, prepared_digits, *more, "recipe.augmentation.scale=0")
    (alone,) = train(compose(*OPTIONS, *more, "recipe.augmentation.scale=0", folder="alone"), strict=True)
    one, two = (torch.load(f / "last.ckpt", weights_only=True)["state_dict"] for f in (alone, folder))
    assert any("running_var" in key for key in one)
    assert all(torch.allclose(one[key].float(), two[key].float(), rtol=1e-4, atol=1e-5) for key in one)
