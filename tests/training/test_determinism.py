"""Equal configurations give equal bits; killed and resumed, the same; several processes, the same images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from convatlas.core.files import write_yaml
from convatlas.training.run import train


def weights(folder: Path, name: str = "best.ckpt") -> dict[str, torch.Tensor]:
    """Read the weights of a run."""
    return torch.load(folder / name, weights_only=True)["state_dict"]


def assert_same_bits(first: Path, second: Path) -> None:
    """Every weight, every metric and every row of the history of two runs are equal."""
    for name in ("best.ckpt", "last.ckpt"):
        one, other = weights(first, name), weights(second, name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    for name in ("metrics.json", "history.csv", "predictions.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("recipe.ema_decay=0.9", "recipe.early_stopping_patience=1", "recipe.gradient_clip_norm=1.0"),
        pytest.param(
            ("model=timm", "model.model_name=mobilenetv3_small_050", "recipe.epochs=1", "trainer.limit_batches=3"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_runs_of_one_configuration_are_equal_to_the_bit(compose, options):
    folders = [train(compose(*options, folder=name), strict=True)[0] for name in ("first", "second")]
    assert_same_bits(*folders)


def test_a_seed_trained_among_others_equals_the_seed_alone(compose):
    alone = train(compose(folder="alone", seeds=[1]), strict=True)[0]
    among = train(compose(folder="among", seeds=[0, 1]), strict=True)[1]
    assert_same_bits(alone, among)


def test_another_seed_gives_other_weights(compose):
    first, second = train(compose(seeds=[0, 1]), strict=True)
    one, other = weights(first), weights(second)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_workers_do_not_change_the_bits(compose):
    none = train(compose(folder="none"), strict=True)[0]
    two = train(compose("trainer.workers=2", folder="two"), strict=True)[0]
    one, other = weights(none), weights(two)
    assert all(torch.equal(one[key], other[key]) for key in one)


def start(config, folder: Path) -> subprocess.Popen[str]:
    """Start a training in a process of its own, as a stage of the pipeline does."""
    write_yaml(folder / "plan" / "study" / "test.yaml", {"config": config.plain()})
    return subprocess.Popen(
        [sys.executable, "-m", "convatlas.train", "--from-plan", "study/test"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_after(process: subprocess.Popen[str], work: Path, seconds: float) -> bool:
    """Kill a training so many seconds after its first checkpoint; False if it had finished by then."""
    while process.poll() is None and not (work / "last.ckpt").exists():
        time.sleep(0.01)
    time.sleep(seconds)
    finished = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return not finished


KILLED_RUN = ("recipe.epochs=6", "trainer.checkpoint_every_n_steps=4", "recipe.ema_decay=0.9", "recipe.batch_size=32")


def check_killed_and_resumed(compose, tmp_path: Path, delays: list[float]) -> int:
    """Train undisturbed, then the same with kills at the delays; returns how many kills struck a running training."""
    undisturbed = train(compose(*KILLED_RUN, folder="undisturbed"), strict=True)[0]
    config = compose(*KILLED_RUN, folder="killed")
    work = config.output_dir / ".work" / "seed=0"
    struck = sum(kill_after(start(config, tmp_path / "project"), work, delay) for delay in delays)
    output, _ = start(config, tmp_path / "project").communicate(timeout=300)
    assert (config.output_dir / "seed=0" / "metrics.json").exists(), output
    assert_same_bits(undisturbed, config.output_dir / "seed=0")
    assert not work.exists()
    return struck


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_bits(compose, tmp_path):
    assert check_killed_and_resumed(compose, tmp_path, [0.15]) == 1


@pytest.mark.slow
def test_ten_kills_and_still_the_same_bits(compose, tmp_path):
    generator = torch.Generator().manual_seed(0)
    delays = (0.02 + torch.rand(10, generator=generator) * 0.3).tolist()
    assert check_killed_and_resumed(compose, tmp_path, delays) >= 5


STAGED = (
    "model=fractal_of_fractalnet_small",
    "model.training=freeze_drop_path",
    "model.freeze_schedule=deterministic",
    "model.drop_path_rate=0.15",
    "model.columns=1",
)


@pytest.mark.parametrize(
    "net",
    [
        (),
        pytest.param(STAGED, id="in stages", marks=pytest.mark.slow),
        pytest.param(("model=stochastic_depth_resnet_small", "model.depth=8", "model.width=4"), id="stochastic depth"),
    ],
)
def test_resuming_in_the_middle_of_an_epoch_gives_the_same_bits(compose, monkeypatch, net):
    from convatlas.tasks.classification import ClassificationTask

    options = (*net, "trainer.checkpoint_every_n_steps=3", "recipe.batch_size=64")
    undisturbed = train(compose(*options, folder="undisturbed"), strict=True)[0]
    losses = ClassificationTask.losses

    def fail_at_step_25(self, batch):
        if self.global_step == 25:  # of 19 steps an epoch: in the second
            raise MemoryError
        return losses(self, batch)

    monkeypatch.setattr(ClassificationTask, "losses", fail_at_step_25)
    with pytest.raises(MemoryError):
        train(compose(*options, folder="broken"), strict=True)
    monkeypatch.setattr(ClassificationTask, "losses", losses)
    resumed = train(compose(*options, folder="broken"), strict=True)[0]
    assert_same_bits(undisturbed, resumed)
    assert [row.split(",")[0] for row in (resumed / "history.csv").read_text().splitlines()[1:]] == ["1", "2"]


def test_timing_is_kept_apart_from_metrics(compose):
    folder = train(compose(), strict=True)[0]
    timing = json.loads((folder / "timing.json").read_text())
    assert timing["device"] == "cpu"
    assert (timing["peak_memory_bytes"], timing["mfu"]) == (None, None)
    images = 2 * (1257 // 128) * 128
    assert timing["images_per_second"] == pytest.approx(images / timing["train_seconds"])
    parts = timing["parts"]
    assert set(parts) == {"start", "data", "steps", "validation", "test", "figures", "tracking"}
    assert min(parts.values()) > 0
    assert parts["data"] + parts["steps"] == pytest.approx(timing["train_seconds"])
    assert parts["test"] == pytest.approx(timing["test_seconds"], abs=0.1)
