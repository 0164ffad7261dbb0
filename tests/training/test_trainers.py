"""What `trainer` offers: accumulation, the scaled learning rate, memory layout, compiling; and what it refuses."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment
from test_determinism import assert_same_bits

from convatlas.core.errors import UserError
from convatlas.core.processes import launched, rank
from convatlas.models.build import build_model
from convatlas.tasks.classification import ClassificationTask
from convatlas.training.machine import check_supported, with_scaled_rate
from convatlas.training.net_callbacks import FollowsNet
from convatlas.training.run import train
from convatlas.training.strategies import build_plugins

QUICK = ("recipe.epochs=1", "recipe.batch_size=64", "trainer.limit_batches=4")


def last_weights(folder):
    """Read the weights after a run's last epoch."""
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def assert_close(first, second, tolerance: float):
    """Every weight and running statistic of two runs agrees."""
    one, other = last_weights(first), last_weights(second)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=tolerance, atol=tolerance)


# ---- accumulation ---------------------------------------------------------------------------------------------------


def test_a_batch_in_pieces_makes_the_step_of_the_whole_batch(compose):
    """The images, their augmentation and mixing are those of the whole batch; sums are in another order."""
    options = (*QUICK, "recipe.augmentation.mixup=0.2", "recipe.schedule.warmup_epochs=0.5")
    (whole,) = train(compose(*options, folder="whole"), strict=True)
    (pieces,) = train(compose(*options, "trainer.accumulate_grad_batches=4", folder="pieces"), strict=True)
    assert_close(whole, pieces, 1e-5)
    one, other = (pd.read_csv(folder / "history.csv") for folder in (whole, pieces))
    assert one["step"].tolist() == other["step"].tolist() == [4]
    assert one["lr"].tolist() == other["lr"].tolist()
    assert one["train/loss"].tolist() == pytest.approx(other["train/loss"].tolist(), rel=1e-5)


def test_the_pieces_of_a_batch_share_what_a_net_draws_for_the_batch(compose, monkeypatch):
    told: list[int] = []
    follow = FollowsNet.on_train_batch_start

    def following(self, trainer, pl_module, batch, idx):
        told.append(pl_module.batch_seed())
        return follow(self, trainer, pl_module, batch, idx)

    monkeypatch.setattr(FollowsNet, "on_train_batch_start", following)
    train(compose(*QUICK, "trainer.accumulate_grad_batches=2"), strict=True)
    assert len(told) == 8
    assert told[::2] == told[1::2]
    assert len(set(told)) == 4


def test_resuming_between_pieces_goes_on_after_the_last_whole_step(compose, monkeypatch):
    options = (
        *("recipe.epochs=2", "recipe.batch_size=64", "trainer.limit_batches=5"),
        *("trainer.accumulate_grad_batches=2", "trainer.checkpoint_every_n_steps=2"),
    )
    (undisturbed,) = train(compose(*options, folder="undisturbed"), strict=True)
    losses = ClassificationTask.losses
    calls = 0

    def fail_in_the_middle_of_step_9(self, batch):
        nonlocal calls
        calls += 1
        if calls == 18:
            raise MemoryError
        return losses(self, batch)

    monkeypatch.setattr(ClassificationTask, "losses", fail_in_the_middle_of_step_9)
    with pytest.raises(MemoryError):
        train(compose(*options, folder="broken"), strict=True)
    monkeypatch.setattr(ClassificationTask, "losses", losses)
    (resumed,) = train(compose(*options, folder="broken"), strict=True)
    assert_same_bits(undisturbed, resumed)


# ---- learning rate --------------------------------------------------------------------------------------------------


def test_the_rate_is_scaled_with_the_batch_only_on_request(compose):
    options = ("recipe.batch_size=256", "recipe.optimizer.lr=0.02")
    assert with_scaled_rate(compose(*options)).recipe.optimizer["lr"] == 0.02
    assert with_scaled_rate(compose(*options, "trainer.scale_lr_from=64")).recipe.optimizer["lr"] == pytest.approx(0.08)


def test_a_run_trains_with_the_scaled_rate_and_records_the_stated_one(compose):
    options = ("recipe/schedule=constant", "recipe.optimizer.lr=0.02", "trainer.scale_lr_from=32")
    (folder,) = train(compose(*QUICK, *options), strict=True)
    assert pd.read_csv(folder / "history.csv")["lr"].tolist() == [pytest.approx(0.04)]
    assert "lr: 0.02" in (folder / "config.yaml").read_text()


# ---- memory layout and compiling ------------------------------------------------------------------------------------


def test_channels_last_reaches_net_and_images_and_keeps_the_result(compose, monkeypatch):
    seen = []
    losses = ClassificationTask.losses

    def look(self, batch):
        kernels = [p for p in self.net.parameters() if p.ndim == 4 and p.shape[1] > 1]
        seen.append(all(t.is_contiguous(memory_format=torch.channels_last) for t in [*kernels, batch["images"]]))
        return losses(self, batch)

    net = ("model=resnet_cifar", "model.depth=8", "model.width=4", "recipe.optimizer.lr=0.001")
    (plain,) = train(compose(*QUICK, *net, "trainer.channels_last=false", folder="plain"), strict=True)
    monkeypatch.setattr(ClassificationTask, "losses", look)
    (last,) = train(compose(*QUICK, *net, folder="last"), strict=True)
    assert seen == [True] * 4
    assert_close(plain, last, 1e-4)


@pytest.mark.slow
def test_a_compiled_net_trains_to_the_same_weights_under_the_same_names(compose):
    net = ("model=resnet_cifar", "model.depth=8", "model.width=4")
    (plain,) = train(compose(*QUICK, *net, folder="plain"), strict=True)
    (compiled,) = train(compose(*QUICK, *net, "trainer.compile=default", folder="compiled"), strict=True)
    assert_close(plain, compiled, 1e-3)


def test_bfloat16_trains_with_weights_in_float32(compose):
    (folder,) = train(compose(*QUICK, "trainer.precision=bf16-mixed"), strict=True)
    assert {value.dtype for key, value in last_weights(folder).items() if key.startswith("net.")} == {torch.float32}
    assert json.loads((folder / "metrics.json").read_text())["test"]["accuracy"] > 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_gpu_trains_in_half_precision_compiled_and_channels_last(compose, precision):
    options = ("trainer=gpu", f"trainer.precision={precision}", "trainer.compile=default")
    net = ("model=resnet_cifar", "model.depth=8", "recipe.epochs=4")
    (folder,) = train(compose(*options, *net), strict=True)
    assert json.loads((folder / "metrics.json").read_text())["test"]["accuracy"] > 0.5


def test_data_in_memory_train_to_the_bits_of_the_files(compose):
    """Workers have nothing to do then; mixing and a batch in pieces are made of the same pixels."""
    options = (*QUICK, "recipe.augmentation.mixup=0.2", "trainer.accumulate_grad_batches=2")
    (mapped,) = train(compose(*options, folder="mapped"), strict=True)
    (held,) = train(compose(*options, "trainer.resident=true", "trainer.workers=2", folder="held"), strict=True)
    assert_same_bits(mapped, held)


# ---- what is refused ------------------------------------------------------------------------------------------------

FSDP = ("trainer=fsdp", "trainer.accelerator=cpu")
REFUSED = {
    "fsdp alone": ((*FSDP, "trainer.devices=1"), "divides a net among processes"),
    "fsdp and averages": ((*FSDP, "recipe.ema_decay=0.9"), "recipe.ema_decay=null"),
    "fsdp and norms": ((*FSDP, "recipe.gradient_norms=true"), "recipe.gradient_norms=false"),
    "fsdp and compiling": ((*FSDP, "trainer.compile=default"), "trainer.compile=null"),
    "fsdp and fp64": ((*FSDP, "trainer.precision=64-true"), "take 32-true or bf16-mixed"),
    "fsdp and reversible": ((*FSDP, "model=revnet_cifar"), "reversible layers of .* take trainer=ddp"),
    "fsdp and stochastic depth": ((*FSDP, "model=stochastic_depth_resnet_small"), "leaves gradients out"),
    "compiling and stochastic depth": (
        ("trainer.compile=default", "model=stochastic_depth_resnet_small"),
        "would be compiled anew",
    ),
    "compiling and reversible": (("trainer.compile=default", "model=revnet_cifar"), "keep their activations"),
    "fp16 on the CPU": (("trainer.precision=16-mixed",), "needs a GPU; take trainer.precision=bf16-mixed"),
    "encoded images in memory": (
        ("trainer.resident=true", "+data.storage=shards"),
        r"decoded one by one on the CPU; set trainer\.resident=auto",
    ),
    "uneven pieces": (("trainer.accumulate_grad_batches=3",), "must be a multiple of 3"),
    "machines without a launcher": (("trainer=ddp", "trainer.num_nodes=2"), "with torchrun or, under SLURM, with srun"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_with_its_remedy(compose, case, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options, words = REFUSED[case]
    config = compose(*options)
    with pytest.raises(UserError, match=words):
        check_supported(config, build_model(config.model))


def test_a_gpu_that_is_not_there_is_told(compose, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"torch finds no GPU here; take trainer=cpu"):
        train(compose("trainer=gpu"), strict=True)


@pytest.mark.parametrize(
    ("launcher", "variables"),
    [
        ("torchrun", {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4"}),
        ("srun", {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}),
    ],
)
def test_another_number_of_processes_than_was_started_is_told(compose, monkeypatch, launcher, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = compose("trainer=ddp", "trainer.accelerator=cpu")
    with pytest.raises(UserError, match=rf"{launcher} started 4 processes but trainer.devices=2 .* make them agree"):
        check_supported(config, build_model(config.model))


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"},  # in a script that sbatch runs
        {"RANK": "1"},
    ],
)
def test_a_variable_alone_starts_no_processes(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (launched(), rank()) == (None, 0)


def test_slurms_signal_leaves_resuming_to_our_checkpoints(compose, monkeypatch):
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setitem(os.environ, name, value)
    found = [plugin for plugin in build_plugins(compose().trainer) if isinstance(plugin, SLURMEnvironment)]
    assert [plugin.auto_requeue for plugin in found] == [False]
