"""The benchmarks can be run: what they measure is told by benchmarks/results.md, not by tests."""

from __future__ import annotations

import runpy
import subprocess
import sys

import pytest

from helpers import ROOT

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
    assert RUN_ALL["processor"]() in text


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
