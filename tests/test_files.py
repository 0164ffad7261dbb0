"""Files are whole or not there, and a full disk is told with the file's name, whatever a library makes of it."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from convatlas.core import files
from convatlas.core.cli import explain_os_error
from convatlas.core.errors import UserError
from convatlas.core.files import atomic_write, read_json, read_yaml, write_json
from convatlas.core.folders import tidy_up
from convatlas.core.processes import is_alive
from helpers import ROOT


@pytest.fixture
def full_after(monkeypatch):
    """Return a function after which a file takes so many bytes and no more."""

    def full_after(room: int) -> None:
        class SmallDisk(files._RememberingFile):
            def write(self, data):
                if self.tell() + len(data) > room:
                    self.failed = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    raise self.failed
                return super().write(data)

        monkeypatch.setattr(files, "_RememberingFile", SmallDisk)

    return full_after


WRITERS = {
    "text": lambda file: file.write(b"x" * 100_000),
    "torch": lambda file: torch.save({"a": torch.zeros(100_000)}, file),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_told_with_the_files_name_and_the_file_before_stays(full_after, tmp_path, write):
    file = tmp_path / "last.ckpt"
    file.write_text("before")
    full_after(5_000)
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(file) as opened:
        write(opened)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(file))
    assert str(file) in (explain_os_error(caught.value) or "")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"last.ckpt": "before"}


def test_every_text_is_read_and_written_in_utf_8():
    """Whatever the locale is, also that of a container without one."""
    calls = [
        (file.name, call)
        for file in (ROOT / "src").rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
    ]
    texts = [
        (file, call.lineno)
        for file, call in calls
        if call.func.attr in ("read_text", "write_text")
        or (call.func.attr == "open" and {"'r'", "'w'", "'a'"} & {ast.unparse(word) for word in call.args})
        if "encoding" not in {word.arg for word in call.keywords}
    ]
    assert texts == []


def test_an_error_of_the_block_itself_stays_what_it_is(tmp_path):
    def half(file: Path) -> None:
        with atomic_write(file) as opened:
            opened.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="other"), atomic_write(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path):
    dead, living = (tmp_path / f".a.json.{process}.tmp" for process in (2**22 + 1, os.getppid()))
    others = [tmp_path / name for name in (".b.json.4194305.tmp", ".a.json.notes.tmp", "a.json.4194305.tmp")]
    for path in (dead, living, *others):
        path.touch()
    write_json(tmp_path / "a.json", {})
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.json", living, *others])


def test_a_file_is_whole(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"é": 1})
    assert (tmp_path / "deep" / "a.json").read_bytes() == '{\n  "é": 1\n}\n'.encode()
    with atomic_write(tmp_path / "net.ckpt") as opened:
        torch.save({"a": torch.arange(3)}, opened)
    assert torch.load(tmp_path / "net.ckpt", weights_only=True)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", ["{", "[" * 100_000, b"\xff\xfe".decode("latin-1")])
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_cannot_be_read_is_one_sentence(tmp_path, read, content):
    (tmp_path / "a").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"a is not readable as (JSON|YAML); do this\."):
        read(tmp_path / "a", "do this.")


def test_values_that_stand_for_others_are_read_unless_they_are_too_many(tmp_path):
    (tmp_path / "a").write_text("a: &a [1, 2]\nb: [*a, *a]\n")
    assert read_yaml(tmp_path / "a", "do this.") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    lines = [f"{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    (tmp_path / "a").write_text("\n".join(["0: &a0 [1, 2]", *lines]))
    with pytest.raises(UserError, match="a is not readable as YAML; do this"):
        read_yaml(tmp_path / "a", "do this.")


@pytest.mark.parametrize("process", ["not waited for", "never was", "beyond all numbers", "alive"])
def test_what_a_dead_process_left_of_a_finished_folder_is_removed(process, tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as ended:
        assert ended.stdout is not None
        ended.stdout.read()  # it has ended, but is not waited for
        known = {"not waited for": ended.pid, "never was": 2**22 + 1, "beyond all numbers": 2**70, "alive": os.getpid()}
        folder, left = tmp_path / "seed=0", tmp_path / f".seed=0.{known[process]}.partial"
        for each in (folder, left):
            each.mkdir()
        for _ in range(200 * (process == "not waited for")):
            time.sleep(0.01 * is_alive(ended.pid))
        tidy_up(folder, "train")
        assert left.exists() == (process == "alive")
        assert folder.exists()
