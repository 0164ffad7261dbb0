"""Real pictures in the formats that others bring: what is counted when they are written is what `prepare` reads."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT

UNPACK = ROOT.parent / "shared" / "data" / "unpack"
READERS = runpy.run_path(str(ROOT / "benchmarks" / "readers.py"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not UNPACK.is_file(), reason="the real files are not in ../shared/data"),
]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """Return the folder with CIFAR-10, BCCD and Sunnybrook as they are published."""
    folder = tmp_path_factory.mktemp("real")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # its program needs a Python with NumPy
    subprocess.run([UNPACK, folder], check=True, capture_output=True, env={**os.environ, "PATH": path})
    return folder


@pytest.mark.parametrize("name", READERS["FORMATS"])
def test_the_counts_of_a_real_set_are_those_of_its_files(name, real, tmp_path):
    counted, found, left_out = READERS["both"](name, real, tmp_path)
    assert counted == found
    assert counted["train"]["images"] > 70
    assert left_out == (2 if name == "yolo" else 0)
    text = READERS["in_words"](counted)
    assert f"| {text} | the same | {left_out} |" in (ROOT / "docs" / "data.md").read_text()
