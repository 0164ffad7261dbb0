"""What tests share: prepared data, made once, and small runs composed from conf/ as a user would."""

from __future__ import annotations

import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.config import RunConfig
from helpers import CHROMIUM, ROOT, TASKS_DATA, Entered, prepare_data

Compose = Callable[..., RunConfig]
Enter = Callable[..., Entered]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test start in the project's folder, and reach no tracking server of the machine."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture(scope="session")
def prepared_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare the digits once."""
    return prepare_data("digits", tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepare every data set that needs no network, once, small where its source allows."""
    folder = tmp_path_factory.mktemp("all_prepared")
    small = {"digit_scenes": ["data.source.scenes=60"], "heart_phantom": ["data.source.patients=12"]}
    return {name: prepare_data(name, folder, small.get(name, [])) for name in TASKS_DATA.values()}


@pytest.fixture
def compose(prepared_digits: Path, tmp_path: Path) -> Compose:
    """Compose a small run on the digits that writes below the test's folder and tracks nothing."""

    def compose(*overrides: str, folder: str = "run", seeds: Sequence[int] = (0,)) -> RunConfig:
        small = [
            "model=lenet5_modern",
            "recipe.epochs=2",
            "recipe.batch_size=128",
            "trainer.threads=1",
            "tracking=none",
        ]
        given = {override.partition("=")[0] for override in overrides}
        kept = [option for option in small if option.partition("=")[0] not in given]
        named = {"variant": "test", "seeds": list(seeds), "output_dir": str(tmp_path / folder)}
        with hydra_ready():
            return compose_run([*kept, f"data.prepared={prepared_digits}", *overrides], named)

    return compose


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Enter:
    """Run an entry point's `__main__` in this process, which saves the seconds of a start."""

    def enter(name: str, *arguments: str) -> Entered:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        GlobalHydra.instance().clear()
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_module(f"convatlas.{name}", run_name="__main__", alter_sys=True)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return Entered(int(ended.value.code or 0), captured.out, captured.err)

    return enter


@pytest.fixture(scope="module")
def browser() -> Any:
    """Start headless Chromium, for the tests of a module."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield started
        started.close()
