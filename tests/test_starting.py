"""How a process starts: its imports, and its end with the process that started it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from convatlas.core.imports import quick_imports
from helpers import ROOT

CALL = "from convatlas.core.processes import die_with_parent; die_with_parent()"
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


def test_what_is_imported_already_sets_nothing_aside():
    before = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
        import json  # noqa: F401
    assert gc.isenabled()
    assert gc.get_freeze_count() <= before


def test_what_imports_make_is_not_looked_through_again(tmp_path, monkeypatch):
    (tmp_path / "made_for_this_test.py").write_text("things = [[] for _ in range(1000)]")
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_freeze_count()
    try:
        with quick_imports():
            import made_for_this_test  # noqa: F401
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + 1000
    finally:
        gc.unfreeze()


def test_a_mistake_leaves_one_line_and_imports_leave_none(tmp_path):
    """C++ libraries would add theirs, of what is not freed in the end."""
    command = [sys.executable, "-m", "convatlas.train", "trainer=debug", f"data.prepared={tmp_path}"]
    mistaken = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert mistaken.returncode == 2
    assert [line.split(":")[0] for line in mistaken.stderr.splitlines()] == ["convatlas"]
    code = "from convatlas.core.imports import quick_imports\nwith quick_imports():\n    import torch._dynamo"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert imported.stderr == ""


def test_the_end_runs_what_was_registered_for_it_and_keeps_the_status():
    for status in (0, 3):
        code = f"import atexit, convatlas.core.cli as cli; atexit.register(print, 'last'); cli._end_at_once({status})"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (status, "last\n")


@linux
def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    child = f"{CALL}; import time; print(1, flush=True); time.sleep(60)"
    file = tmp_path / "pid"
    parent = (
        "import pathlib, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        f"pathlib.Path({str(file)!r}).write_text(str(child.pid))\n"
        "print(1, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    number = int(Path(file).read_text())
    assert psutil.pid_exists(number)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 20
    while time.monotonic() < until and psutil.pid_exists(number) and psutil.Process(number).status() != "zombie":
        time.sleep(0.05)
    assert not psutil.pid_exists(number) or psutil.Process(number).status() == "zombie"


@linux
def test_a_child_of_a_containers_first_process_is_no_orphan():
    code = f"import os; os.getppid = lambda: 1; {CALL}; print('goes on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "goes on\n")


@linux
def test_freed_memory_is_kept_and_not_filled_with_zeros_again():
    """Each round frees 64 MiB, whose 16,384 pages Linux may otherwise fill anew; ten find them a place that stays."""
    rounds = (
        "import resource, torch\n"
        "from convatlas.core.processes import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "def faults(rounds):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(rounds): blocks = [torch.empty(2**22).fill_(1) for _ in range(4)]; del blocks\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(faults(10), faults(10))\n"
    )
    done = subprocess.run([sys.executable, "-c", rounds], capture_output=True, text=True, check=True)
    first, then = map(int, done.stdout.split())
    assert then < first / 20  # a page may be large
