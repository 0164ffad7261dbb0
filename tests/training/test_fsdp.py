"""Gradients and optimiser state divided between two processes (FSDP): the result is that of one."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
import torch

from convatlas.training.run import train
from helpers import ROOT, train_outside

NET = ("model=resnet_cifar", "model.depth=8", "model.width=4", "trainer.threads=1", "tracking=none")
EXACT = ("recipe.optimizer.lr=0.005", "recipe.decay_norms_and_biases=false", "recipe.gradient_clip_norm=1.0")


def trained_by_two(tmp_path, prepared, *more: str):
    """Train with two processes that Lightning starts; returns the run's folder."""
    command = [sys.executable, "-m", "convatlas.train", "trainer=fsdp", "trainer.accelerator=cpu", *NET, *more]
    train_outside([*command, f"data.prepared={prepared}", "output_dir=run"], tmp_path)
    return tmp_path / "run" / "seed=0"


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("trainer.accumulate_grad_batches=2",)], ids=["whole", "in pieces"])
def test_two_processes_have_the_loss_curve_and_the_weights_of_one(tmp_path, prepared_digits, compose, more):
    """Thirty steps with clipping, batch norm over both, and decay for kernels alone; rounding grows with the steps.

    With the channels innermost, torch itself sums the statistics of one process in float32, and they part further.
    """
    steps = (
        "recipe.epochs=30",
        "trainer.limit_batches=1",
        "recipe.batch_size=64",
        *EXACT,
        "trainer.channels_last=false",
    )
    folder = trained_by_two(tmp_path, prepared_digits, *steps, *more)
    (alone,) = train(compose(*NET, *steps, *more, folder="alone"), strict=True)
    one, two = (pd.read_csv(f / "history.csv") for f in (alone, folder))
    apart = (one["train/loss"] - two["train/loss"]).abs()
    assert apart[:10].max() <= 1e-5
    assert apart.max() <= 1e-3
    for name in ("best.ckpt", "last.ckpt"):
        first, second = (torch.load(f / name, weights_only=True)["state_dict"] for f in (alone, folder))
        assert first.keys() == second.keys()
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=1e-2, atol=1e-3)
    predictions = [pd.read_parquet(f / "predictions.parquet") for f in (alone, folder)]
    assert (predictions[0]["prediction"] == predictions[1]["prediction"]).mean() > 0.99
    assert "strategy: fsdp" in (folder / "config.yaml").read_text()


@pytest.mark.slow
def test_each_process_keeps_half_of_the_optimisers_state(tmp_path, prepared_digits):
    """Counted within the processes, after the first step."""
    script = """
import pytorch_lightning as pl, torch
from convatlas.tasks.base import Task
def count(self, *_):
    optimizer = self.optimizers().optimizer
    held = sum(s["momentum_buffer"].to_local().numel() for s in optimizer.state.values())
    print(f"held {held} of {sum(p.numel() for p in self.net.parameters())}", flush=True)
Task.on_train_batch_end = count
import runpy; runpy.run_module("convatlas.train", run_name="__main__", alter_sys=True)
"""
    (tmp_path / "counting.py").write_text(script)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "counting.py"]
    options = [*NET, "trainer=fsdp", "trainer.accelerator=cpu", "recipe.epochs=1", "trainer.limit_batches=1"]
    done = train_outside([*torchrun, *options, f"data.prepared={prepared_digits}", "output_dir=run"], tmp_path)
    counts = [line.split()[1::2] for line in done.stdout.splitlines() if line.startswith("held")]
    held, whole = [int(count[0]) for count in counts], int(counts[0][1])
    assert len(held) == 2
    assert sum(held) == whole
    assert max(held) < 0.6 * whole


@pytest.mark.slow
@pytest.mark.parametrize("net", ["resnet18_small", "mobilenet_v2_small", "unet_small"])
def test_no_process_has_the_whole_net_at_a_time(tmp_path, net):
    """Every block is a unit of its own, and while one computes the others are divided; counted with gloo."""
    data = ["data=heart_phantom"] if net == "unet_small" else ["data=cluttered_digits"]
    script = str(ROOT / "tests" / "training" / "fsdp_blocks.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    done = train_outside([*torchrun, net, *data], tmp_path)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("found")]
    units, blocks, whole, most, after = map(int, line.split()[1:])
    assert units == blocks + 1 > 5
    assert most < 0.5 * whole
    assert after == 0
