"""What commands print at their end: text, JSON for programs, or nothing."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from convatlas.training.run import train
from helpers import ROOT
from test_nothing_lost import SEARCH, SMALL, TUNE


@pytest.fixture
def arguments(compose, prepared_digits, tmp_path, monkeypatch):
    """Return the arguments of a command, in a project of its own."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    places = (f"data.prepared={prepared_digits}", "output_dir=new", "overwrite=true")

    def of(command: str) -> list[str]:
        match command:
            case "plan":
                return ["study=densenet,vgg_configurations"]
            case "export":
                (run,) = train(compose("recipe.epochs=1", "trainer.limit_batches=1"), strict=True)
                return [f"run={run}", "format=safetensors,timm", "output_dir=new"]
            case "tune":
                return [*SMALL, *TUNE, *places]
            case _:
                return [*SEARCH, *places]

    return of


def plan_says(found: Any) -> bool:
    return found["studies"] == ["densenet", "vgg_configurations"] and "densenet/" in found["runs"][0]


EXPECTED = {
    "plan": plan_says,
    "tune": lambda found: found["train"].startswith("python -m convatlas.train model=lenet5_modern"),
    "search.__main__": lambda found: found[0]["report"] == "new/report.html" and "verdicts" in found[0],
}


@pytest.mark.parametrize("command", EXPECTED)
def test_a_command_answers_programs_in_json(command, arguments, enter):
    entered = enter(command, *arguments(command), "format=json")
    assert entered.status == 0, entered.err
    assert EXPECTED[command](json.loads(entered.out))


@pytest.mark.parametrize("command", [*EXPECTED, "export"])  # the format of an export is that of the net
def test_a_quiet_command_prints_nothing(command, arguments, enter):
    entered = enter(command, *arguments(command), "-q")
    assert (entered.status, entered.out) == (0, ""), entered.err
