"""How commands end: Ctrl-C, and the jobs of a `--multirun` of which some fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest

from convatlas.core.cli import run, run_hydra
from convatlas.core.errors import UserError
from convatlas.core.processes import run_program
from convatlas.tasks.classification import ClassificationTask
from helpers import ROOT

GOES_ON = "Interrupted. The same command goes on from the last checkpoint."
SMALL = ("model=lenet5_modern", "trainer.threads=1", "recipe.batch_size=128", "recipe.epochs=2", "tracking=none")


@pytest.fixture(autouse=True)
def interrupts():
    """Put Ctrl-C back as it was: Lightning ignores a second one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("command", [("train",), ("tune", "tune.trials=1", "recipe.optimizer.lr=choice(0.1,0.01)")])
def test_ctrl_c_in_a_training(enter, monkeypatch, prepared_digits, tmp_path, command):
    losses = ClassificationTask.losses

    def interrupted(self, batch):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return losses(self, batch)

    options = (*SMALL, f"data.prepared={prepared_digits}", f"output_dir={tmp_path / 'run'}")
    monkeypatch.setattr(ClassificationTask, "losses", interrupted)
    entered = enter(*command, *options)
    assert (entered.status, entered.err.splitlines()[-1]) == (130, f"convatlas: {GOES_ON}")
    assert "Traceback" not in entered.err
    monkeypatch.setattr(ClassificationTask, "losses", losses)
    assert enter(*command, *options).status == 0


def interrupt() -> None:
    raise KeyboardInterrupt


def as_lightning_does() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize(
    ("main", "status", "said"),
    [
        (interrupt, 130, "convatlas: Interrupted.\n"),
        (as_lightning_does, 130, "convatlas: Interrupted.\n"),
        (lambda: sys.exit(1), 1, ""),
        (lambda: sys.exit(143), 143, ""),
    ],
)
def test_a_command_without_checkpoints_does_not_speak_of_them(capsys, main, status, said):
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert (ended.value.code, capsys.readouterr().err) == (status, said)


def test_ui_does_not_speak_of_checkpoints(enter, monkeypatch):
    monkeypatch.setattr("convatlas.tracking.store.connect", lambda *_, **__: interrupt())
    entered = enter("ui", "port=5999")
    assert (entered.status, entered.err) == (130, "convatlas: Interrupted.\n")


@pytest.mark.parametrize(
    ("failing", "listed"),
    [
        ({}, ""),
        ({0: UserError("no such data")}, "1 of the jobs failed: seed=0"),
        ({0: UserError("no such data"), 2: OSError(28, "full", "file")}, "2 of the jobs failed: seed=0; seed=2"),
        ({1: RuntimeError("a bug")}, "1 of the jobs failed: seed=1"),
    ],
)
def test_jobs_after_one_that_fails_still_run(monkeypatch, capsys, tmp_path, failing, listed):
    ran = []

    def main(config):
        ran.append(config.seed)
        if config.seed in failing:
            raise failing[config.seed]

    monkeypatch.setattr(sys, "argv", ["train", "--multirun", "seed=0,1,2", f"hydra.sweep.dir={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        run_hydra(main, "train")
    said = capsys.readouterr().err
    assert ran == [0, 1, 2]
    assert ended.value.code == (2 if failing else 0)
    assert listed in said
    assert ("a bug" in said) == (1 in failing)
    assert said.count("no such data") == (0 in failing)


def test_ctrl_c_ends_a_multirun(monkeypatch, tmp_path):
    ran = []

    def main(config):
        ran.append(config.seed)
        as_lightning_does()

    monkeypatch.setattr(sys, "argv", ["train", "--multirun", "seed=0,1,2", f"hydra.sweep.dir={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        run_hydra(main, "train")
    assert (ran, ended.value.code) == ([0], 130)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_library_makes_an_error_of_ends_the_command(capsys, number, status):
    def library():
        try:
            signal.raise_signal(number)
        except BaseException as error:
            raise ValueError("cannot serialise") from error

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background begins with it ignored
    try:
        with pytest.raises(SystemExit) as ended:
            run(library)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended.value.code == status
    assert "bug" not in capsys.readouterr().err


@pytest.mark.parametrize(("presses", "orderly"), [(0, True), (1, True), (2, False)])
def test_a_program_that_a_command_runs_ends_in_its_own_way_at_the_first_ctrl_c(tmp_path, presses, orderly):
    program = "import pathlib, time; pathlib.Path('begun').touch(); time.sleep(1.5); pathlib.Path('ended').touch()"

    def press() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        for _ in range(presses):
            time.sleep(0.4)  # two within a quarter of a second are one to subprocess
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=press, daemon=True).start()
        with pytest.raises(KeyboardInterrupt) if presses else nullcontext():
            assert run_program([sys.executable, "-c", program], cwd=tmp_path) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "ended").exists() == orderly


COMMANDS = (
    "decide",
    "evaluate",
    "models",
    "plan",
    "predict",
    "prepare",
    "profile",
    "report",
    "resolve",
    "search",
    "track",
)
COMMANDS += ("train", "tune", "ui")


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_while_a_command_is_imported(tmp_path, command):
    (tmp_path / "yaml.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")  # every command imports it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background begins with it ignored
    try:
        ended = subprocess.run(
            [sys.executable, "-m", f"convatlas.{command}"],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "convatlas: Interrupted.\n")


def test_ctrl_c_in_a_program_that_imports_the_package_is_its_own(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # in the background it is ignored
        "import convatlas; print(signal.getsignal(signal.SIGINT).__name__)"
    )
    printed = subprocess.run([sys.executable, "-m", "theirs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed.stdout == "default_int_handler\n"
