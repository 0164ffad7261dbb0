"""A finished run's folder that came from elsewhere, damaged or made to harm: one sentence each, and nothing that lasts.

What its configuration may name is in `test_seam.py`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.training.run import train
from helpers import assert_one_sentence

SMALL = ("model=lenet5_modern", "recipe.epochs=1", "trainer.threads=1", "trainer.limit_batches=1", "tracking=none")


@pytest.fixture(scope="module")
def finished(prepared_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a seed once."""
    folder = tmp_path_factory.mktemp("finished")
    with hydra_ready():
        named = {"variant": "v", "seeds": [0], "output_dir": str(folder / "run")}
        return train(compose_run([*SMALL, f"data.prepared={prepared_digits}"], named), strict=True)[0]


def instead(name: str, of: str | bytes) -> Callable[[Path], None]:
    """Write something else into a file."""
    return lambda run: (run / name).write_bytes(of if isinstance(of, bytes) else of.encode())


def a_device(name: str) -> Callable[[Path], None]:
    """Let a file be one that has no end."""

    def change(run: Path) -> None:
        (run / name).unlink()
        (run / name).symlink_to("/dev/zero")

    return change


def a_pipe(name: str) -> Callable[[Path], None]:
    """Let a file be a pipe into which nobody writes."""

    def change(run: Path) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)

    return change


def with_values(name: str, **values: Any) -> Callable[[Path], None]:
    """Change values of a JSON or YAML file; `__` stands for the dot between keys."""

    def change(run: Path) -> None:
        content = yaml.safe_load((run / name).read_text())
        for key, value in values.items():
            *sections, last = key.split("__")
            place = content
            for section in sections:
                place = place[section]
            place[last] = value
        (run / name).write_text(json.dumps(content))

    return change


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
TIMM = {"_target_": "convatlas.models.adapters.timm_model", "model_name": "resnet18", "num_classes": 10}
CASES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a configuration without end": ("predict", a_device("config.yaml"), "config.yaml is no regular file"),
    "a configuration that nobody writes": ("evaluate", a_pipe("config.yaml"), "config.yaml is no regular file"),
    "a few lines that stand for a billion values": ("predict", instead("config.yaml", BOMB), "not readable as YAML"),
    "a checkpoint without end": ("predict", a_device("best.ckpt"), "best.ckpt is damaged"),
    "a card without end": ("predict", a_device("data_card.json"), "data_card.json is no regular file"),
    "a record without end": ("evaluate", a_device("metrics.json"), "metrics.json is no regular file"),
    "a history without end": ("track", a_device("history.csv"), "history.csv is no regular file"),
    "fewer classes than the net has": ("predict", with_values("data_card.json", classes=["a", "b"]), "names 2 classes"),
    "a mean of no channel": ("predict", with_values("data_card.json", mean=[]), "mean is not one number for each"),
    "a deviation that is none": ("predict", with_values("data_card.json", std=[float("nan")]), "std is not one number"),
    "images larger than any memory": ("evaluate", with_values("config.yaml", data__image_size=10**9), "memory"),
    "weights of any file": (
        "predict",
        with_values("config.yaml", model={**TIMM, "in_channels": 1, "checkpoint_path": "/etc/passwd"}),
        "model.checkpoint_path is not taken",
    ),
    "a pretrained net of any address": (
        "predict",
        with_values("config.yaml", model={**TIMM, "in_channels": 1, "pretrained_cfg": {"url": "http://x"}}),
        "model.pretrained_cfg is not taken",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_from_elsewhere(enter, finished, tmp_path, case):
    command, change, words = CASES[case]
    run = tmp_path / "run" / "seed=0"
    shutil.copytree(finished, run)
    change(run)
    picture = tmp_path / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)).save(picture)
    arguments = {
        "predict": [f"run={run}", str(picture), f"output_dir={tmp_path / 'predictions'}"],
        "evaluate": [f"run={run}"],
        "track": [str(run), f"uri=sqlite:///{tmp_path / 'mlflow.db'}"],
    }
    assert_one_sentence(enter(command, *arguments[command]), words)
    assert not (tmp_path / "predictions").exists()
