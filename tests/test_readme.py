"""README's commands: each runs after `make repro`, here on a small run in the place of the plan's, or in another."""

from __future__ import annotations

import re
import shlex
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from convatlas.training.run import train
from helpers import ROOT

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()
COMMANDS = list(
    dict.fromkeys(
        found.replace(r"\|", "|")
        for found in re.findall(r"`((?:python -m convatlas\.|convatlas |dvc |make |MLFLOW|eval )[^`]+)`", README)
    )
)
QUICK = ["trainer.limit_batches=2", "recipe.epochs=1", "tracking=none", "trainer.threads=1"]
ELSEWHERE = {
    "make": "test_makefile.py",
    "dvc": "test_pipeline.py",
    "MLFLOW_TRACKING_URI": "tests/tracking",
    "eval": "test_command.py",
    "completion": "test_command.py",
    "ui": "test_ui.py",
    "experiments": "DVC's own, as repro",
    "atlas": "tests/atlas",
    "calibrate": "test_calibration.py",
    "decide": "test_decide.py",
    "search": "tests/search",
    "tune": "test_tune.py",
}
"""Commands that take a pipeline, a server or minutes, with the tests that run them."""
NOT_HERE = (
    "data=cifar10",
    "trainer=ddp",
    "--config-dir my_conf",
    "part=column_3",
    "drop_path_mixed",
    "format=onnx",
)
"""Words of commands that need the network, several processes, or files that the command's own tests write."""


def program(command: str) -> str:
    """Return the entry point that a command starts."""
    words = command.split()
    if words[0] == "convatlas":
        return words[1]
    return words[2].removeprefix("convatlas.") if words[0] == "python" else words[0].partition("=")[0]


def shortened(command: str) -> list[str]:
    """Return the options of a command, so changed that it takes seconds."""
    words = shlex.split(command.partition(" > ")[0])
    words = words[2:] if words[0] == "convatlas" else words[3:]
    words = [re.sub(r"^data=cluttered_digits(_hard)?$", "data=digits", word) for word in words]
    name = program(command)
    if name == "train" and "--cfg" not in words:
        words += QUICK
    if name == "measure":
        words += ["seconds=0.1"]
    return words


WHOLE = [command for command in COMMANDS if "..." not in command and "--help" not in command]
HERE = [c for c in WHOLE if program(c) not in ELSEWHERE and not any(word in c for word in NOT_HERE)]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a configuration of its own, in which every command is run, in README's order."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "conf", folder / "conf")
    for name in ("cat", "dog"):
        (folder / "my_pictures" / name).mkdir(parents=True)
    (folder / "my_images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "my_pictures" / ("cat", "dog")[number % 2] / f"{number}.png")
        Image.fromarray(pixels[..., 0]).save(folder / "my_images" / f"{number}.png")
    return folder


@pytest.fixture
def after_repro(project, compose, prepared_digits, monkeypatch):
    """Put a finished run where the plan has LeNet-5's, and its data."""
    run = project / "runs" / "overview" / "lenet5"
    if not run.exists():
        (project / "data" / "prepared").mkdir(parents=True)
        shutil.copytree(prepared_digits, project / "data" / "prepared" / "digits")
        config = compose("model=lenet5", f"data.prepared={project}/data/prepared/digits", "recipe.epochs=1")
        train(config.model_copy(update={"output_dir": run, "study": "overview", "variant": "lenet5"}), strict=True)
        shutil.copytree(run, project / "runs" / "adhoc" / "lenet5-digits-12345678")  # one that was trained alone
    monkeypatch.chdir(project)
    shutil.copy(ROOT / "params.yaml", project)
    shutil.copy(ROOT / "stages.yaml", project)


def test_readme_has_commands_and_most_are_run_here():
    assert len(COMMANDS) > 30
    assert len(HERE) > 12, HERE


@pytest.mark.parametrize("command", HERE)
def test_a_command_of_the_readme_runs(command, after_repro, project, enter):
    if "densenet" in command and "=-" in command:
        assert enter("plan", "study=+densenet").status == 0
    entered = enter(program(command), *shortened(command))
    assert entered.status == 0, entered.err
    assert "This is a bug" not in entered.err
    if program(command) == "prepare":
        (train_command,) = re.findall(r"To train on them: (.*)", entered.out)
        assert yaml.safe_load((project / "conf" / "data" / "my_pictures.yaml").read_text())["num_classes"] == 2
        assert enter("train", *shortened(train_command)).status == 0
