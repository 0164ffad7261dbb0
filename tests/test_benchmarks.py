"""The benchmarks can be run: what they measure is told by benchmarks/results.md, not by tests."""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convatlas.core.environment import processor
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
GPU = runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"))
RUN_ALL = runpy.run_path(str(ROOT / "benchmarks" / "run_all.py"))


def test_sections_of_an_earlier_page_are_kept_in_order() -> None:
    section, page, read = RUN_ALL["section"], RUN_ALL["page"], RUN_ALL["read"]
    made = {
        name: section(command, f"{name}: 1 s\n\n## not a section", 60.0)
        for name, command in RUN_ALL["BENCHMARKS"].items()
    }
    text = page(dict(reversed(made.items())))
    assert read(text) == made
    assert text.index("## start") < text.index("## pipeline") < text.index("## repro")
    assert "`python benchmarks/reversible.py --units 3 9 --repeats 3 --plot" in text
    assert str(processor()) in text


@pytest.mark.slow
def test_every_benchmark_runs() -> None:
    """Briefly, the one for a GPU and those that are run by name included; the page of results stays as it is."""
    results = ROOT / "benchmarks" / "results.md"
    before = results.read_bytes() if results.exists() else None
    programs = [["run_all.py", *RUN_ALL["BENCHMARKS"], *RUN_ALL["BY_NAME"]], ["cifar10_speed.py"]]
    for program, *names in programs:
        command = [sys.executable, f"benchmarks/{program}", *names, "--quick"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (results.read_bytes() if results.exists() else None) == before


def test_the_page_of_the_gpu_says_what_its_record_says() -> None:
    """Without a record, that nothing has run on a GPU."""
    record = ROOT / "benchmarks" / "gpu.json"
    found = json.loads(record.read_text()) if record.exists() else None
    assert (ROOT / "docs" / "gpu.md").read_text() == GPU["page"](found)
    assert "Nothing of this project has run on a GPU yet" in GPU["page"](None)


def test_the_table_has_what_ran_and_names_what_did_not() -> None:
    parts = {
        "steps": {
            "seconds": 3.0,
            "rows": [{"what": "ResNet-18, bf16", "images/s": 1234.5, "peak MB": None, "note": "a|b"}],
        },
        "seeds": {"failed": "RuntimeError: no memory", "rows": []},
        "resnet20": {"not_run": "no time was left"},
    }
    lines = GPU["table"]({"parts": parts}).splitlines()
    assert lines[0] == "| | images/s | note |"
    assert lines[2] == "| ResNet-18, bf16 | 1,234.5 | a/b |"
    assert lines[-2:] == ["- `seeds`: failed: RuntimeError: no memory", "- `resnet20`: not run: no time was left"]


def test_a_part_for_which_no_time_is_left_is_not_begun(tmp_path: Path) -> None:
    arguments = argparse.Namespace(minutes=0.0, cifar10=None, rehearse=True)
    found = GPU["run"](arguments, tmp_path, tmp_path / "gpu.json", tmp_path / "gpu.md")
    assert {part["not_run"] for part in found["parts"].values()} == {"no time was left"}
    assert json.loads((tmp_path / "gpu.json").read_text()) == found


def test_without_a_gpu_only_a_rehearsal_is_possible() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run([sys.executable, "benchmarks/gpu.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "--rehearse" in done.stderr) == (2, True)


@pytest.mark.slow
def test_the_minutes_on_a_gpu_are_rehearsed(tmp_path: Path) -> None:
    """Every part, on the CPU with tiny sizes; the page of the repository stays as it is."""
    page = (ROOT / "docs" / "gpu.md").read_text()
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--folder", str(tmp_path), "--minutes", "25"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["parts"]) == list(GPU["PARTS"])
    wrong = {name: part for name, part in found["parts"].items() if "failed" in part or not part["rows"]}
    assert wrong == {}
    assert "a rehearsal on the CPU" in (tmp_path / "gpu.md").read_text()
    assert (ROOT / "docs" / "gpu.md").read_text() == page
