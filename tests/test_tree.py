"""The code that runs is that of the tree that one stands in, whichever tree the environment was made for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convatlas.core.environment import git_state
from helpers import ROOT


@pytest.fixture
def clone(tmp_path):
    """Make a second clone, in which LeNet-5's classifier has no bias."""
    folder = tmp_path / "a clone (2)"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    git(folder, "init", "-q")
    commit(folder)
    net = folder / "src" / "convatlas" / "models" / "classification" / "lenet.py"
    text = net.read_text()
    assert "nn.Linear(84, num_classes)" in text
    net.write_text(text.replace("nn.Linear(84, num_classes)", "nn.Linear(84, num_classes, bias=False)"))
    return folder


def git(folder: Path, *words: str) -> str:
    """Run git in a folder."""
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path) -> None:
    """Commit everything in a folder."""
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "a commit")


def python(folder: Path, *words: str) -> str:
    """Run Python in a folder, with the environment of this tree."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_training_in_a_second_clone_trains_the_clones_net(clone, prepared_digits):
    import torch

    options = ["model=lenet5_modern", f"data.prepared={prepared_digits}", "output_dir=run", "study=of_the_clone"]
    python(clone, "-m", "convatlas.train", *options, "tracking=none", "trainer=debug", "trainer.limit_batches=1")
    run = clone / "run" / "seed=0"
    weights = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    assert sum(tensor.numel() for name, tensor in weights.items() if name.startswith("net.")) == 61_706 - 10
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["commit"], environment["dirty"]) == (git(clone, "rev-parse", "HEAD"), True)
    assert json.loads((run / "metrics.json").read_text())["study"] == "of_the_clone"


def test_elsewhere_the_installed_tree_runs(tmp_path, clone):
    code = "import convatlas.core.errors as e, convatlas; print(e.__file__, convatlas.__file__)"
    assert set(python(tmp_path, "-c", code).split()) == {
        str(ROOT / "src" / "convatlas" / name) for name in ("core/errors.py", "__init__.py")
    }
    assert python(clone, "-c", code).count(str(clone / "src")) == 2


def test_new_files_of_code_and_configuration_count_as_a_difference(clone, monkeypatch):
    monkeypatch.setattr("convatlas.core.environment.PROJECT", clone)
    commit(clone)
    head = git(clone, "rev-parse", "HEAD")
    assert git_state() == {"commit": head, "dirty": False}
    for new, dirty in (
        ("notes.txt", False),
        ("dvc.lock", False),
        ("conf/model/mine.yaml", True),
        ("src/mine.py", True),
    ):
        (clone / new).write_text("x: 1\n")
        assert git_state()["dirty"] is dirty, new
        (clone / new).unlink()
    shutil.rmtree(clone / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(clone.parent))
    assert git_state() == {"commit": None, "dirty": None}
