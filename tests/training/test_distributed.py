"""Two processes on the processor: the same images, one folder, one run in MLflow, however they were started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from test_determinism import assert_same_bits

from convatlas.data.prepared import PreparedData
from convatlas.training.run import train
from helpers import ROOT, train_outside

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


def command_of(launcher: str, prepared: Path, *more: str) -> list[str]:
    """Return the command that trains with two processes."""
    options = ("trainer=ddp", "trainer.accelerator=cpu", *OPTIONS, f"data.prepared={prepared}", "output_dir=run")
    given = {option.partition("=")[0] for option in more}
    return [*LAUNCHERS[launcher], *(o for o in options if o.partition("=")[0] not in given), *more]


def run_distributed(launcher: str, tmp_path: Path, prepared: Path, *more: str) -> Path:
    """Train with two processes in an empty folder and return the run's folder."""
    train_outside(command_of(launcher, prepared, *more), tmp_path)
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


@pytest.mark.slow
@pytest.mark.parametrize("net", ["stochastic_depth_resnet_small", "fractalnet_small"])
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
    """Gradients, running statistics and weights after two steps, but for the order of summation.

    With the channels innermost, torch itself sums the statistics of one process in float32, and they part further.
    """
    options = ("model=resnet_cifar", "model.depth=8", "model.width=4", "recipe.epochs=1", "trainer.limit_batches=2")
    more = (
        *options,
        "trainer.channels_last=false",
        "tracking=none",
        "recipe.augmentation.crop_padding=0",
        "recipe.augmentation.rotation_degrees=0",
    )
    folder = run_distributed("lightning", tmp_path, prepared_digits, *more, "recipe.augmentation.scale=0")
    (alone,) = train(compose(*OPTIONS, *more, "recipe.augmentation.scale=0", folder="alone"), strict=True)
    one, two = (torch.load(f / "last.ckpt", weights_only=True)["state_dict"] for f in (alone, folder))
    assert any("running_var" in key for key in one)
    assert all(torch.allclose(one[key].float(), two[key].float(), rtol=1e-4, atol=1e-5) for key in one)


ONE_STEP_AN_EPOCH = (  # so that the history has the loss of every step
    *("recipe.epochs=50", "trainer.limit_batches=1", "recipe.evaluation_batch_size=1024", "tracking=none"),
)
RESNET_IN_FLOAT64 = ("model=resnet_cifar", "model.depth=8", "model.width=8", "trainer.precision=64-true")
SMOOTH_IN_FLOAT32 = (
    "model=timm",
    "model._target_=smooth_net.SmoothNet",
    "~model.model_name",
    "recipe.optimizer.lr=0.1",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "net"),
    [("lightning", RESNET_IN_FLOAT64), ("torchrun", RESNET_IN_FLOAT64), ("lightning", SMOOTH_IN_FLOAT32)],
)
def test_two_processes_have_the_loss_curve_of_one(launcher, net, tmp_path, *, prepared_digits, compose, monkeypatch):
    """Fifty steps at the same batch over all processes, batch norm synchronised.

    With ReLU in float64: in float32, rounding switches single units, and from there even one process that takes the
    images of a batch in another order parts from itself by 1e-3. A net without kinks shows the same in float32.
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    folder = run_distributed(launcher, tmp_path, prepared_digits, *net, *ONE_STEP_AN_EPOCH)
    (alone,) = train(compose(*OPTIONS, *net, *ONE_STEP_AN_EPOCH, folder="alone"), strict=True)
    one, two = (pd.read_csv(f / "history.csv")["train/loss"] for f in (alone, folder))
    assert len(one) == 50
    assert one.iloc[-1] < one.iloc[0] - 0.3
    assert ((one - two).abs() / one).max() <= 1e-5


def started(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start a training and what it starts as a group of processes of its own."""
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_loss_that_becomes_nan_in_one_process_stops_all(tmp_path, prepared_digits, monkeypatch):
    """The other, which has a finite loss, would go on alone, into a wait or a traceback."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    net = ("model=timm", "model._target_=smooth_net.DivergesInOneProcess", "~model.model_name", "tracking=none")
    net = (*net, "recipe.epochs=1", "trainer.limit_batches=1")  # a second step would spread it over the weights of both
    process = started(command_of("lightning", prepared_digits, *net), tmp_path)
    try:
        said, _ = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 2, said
    assert "convatlas: The loss became" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "run").rglob("metrics.json"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_killed_and_resumed_end_in_the_same_bits(strategy, launcher, tmp_path, prepared_digits):
    """Killed within an epoch; what the processes sum over it is resumed as well, each its own."""
    more = (
        *("model=resnet_cifar", "model.depth=8", "model.width=4", "recipe.epochs=4", "recipe.batch_size=32"),
        *("trainer.checkpoint_every_n_steps=5", "tracking=none", f"trainer.strategy={strategy}"),
    )
    (tmp_path / "undisturbed").mkdir()
    undisturbed = run_distributed(launcher, tmp_path / "undisturbed", prepared_digits, *more)
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "conf").symlink_to(ROOT / "conf")
    process = started(command_of(launcher, prepared_digits, *more), folder)
    checkpoint = folder / "run" / ".work" / "seed=0" / "last.ckpt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # torchrun's processes are in groups of their own, and end by themselves when it is gone
    assert not (folder / "run" / "seed=0").exists()
    done = started(command_of(launcher, prepared_digits, *more), folder)
    output, _ = done.communicate(timeout=400)
    assert done.returncode == 0, output
    assert_same_bits(undisturbed, folder / "run" / "seed=0")


@pytest.mark.slow
def test_srun_starts_processes_that_train_as_one(tmp_path, prepared_digits, compose):
    """With the variables that SLURM gives each of its tasks, on one machine."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    of_slurm = {
        "SLURM_JOB_ID": str(os.getpid()),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    more = ("recipe.epochs=1", "trainer.limit_batches=4", "tracking=none")
    tasks = [
        subprocess.Popen(
            command_of("lightning", prepared_digits, *more),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                **of_slurm,
                "SLURM_PROCID": f"{number}",
                "SLURM_LOCALID": f"{number}",
            },
        )
        for number in range(2)
    ]
    outputs = [task.communicate(timeout=400)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["seed=0"]
    (alone,) = train(compose(*OPTIONS, *more, folder="alone"), strict=True)
    one, two = (torch.load(f / "last.ckpt", weights_only=True)["state_dict"] for f in (alone, tmp_path / "run/seed=0"))
    assert all(torch.allclose(one[key], two[key], rtol=1e-3, atol=1e-5) for key in one)
