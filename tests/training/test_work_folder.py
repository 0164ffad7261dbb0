"""The folder of an unfinished training: what two processes, a damaged record and an early end leave of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from convatlas.core.errors import UserError
from convatlas.training.work_folder import WorkFolder

ROUNDS = 300

OPEN_AND_CLOSE = """
import sys
import time
from pathlib import Path
from convatlas.core.errors import UserError
from convatlas.training.work_folder import WorkFolder

root, name, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
opened = 0
while opened < rounds:
    folder = WorkFolder(root / name / "seed=0", {"n": 1}, strict=True)
    try:
        folder.open(overwrite=False)
    except UserError as error:
        assert "Another process" in str(error), error
        time.sleep(0.0005)
        continue
    mark = folder.path / "mark"
    assert not mark.exists(), "two processes in one folder"
    mark.touch()
    mark.unlink()
    opened += 1
    (folder.remove if opened % 3 else folder.close)()
"""


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("a", "a")], ids=["neighbours", "the same folder"])
def test_two_processes_open_and_close_without_an_error_and_never_share_a_folder(tmp_path, first, second):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_AND_CLOSE, str(tmp_path / ".work" / "study"), name, str(ROUNDS)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in (first, second)
    ]
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], [stderr for _, stderr in ended]
    assert list(tmp_path.iterdir()) == [tmp_path / ".work"]


def made(path: Path, identity: dict | None = None, *, strict: bool = True) -> WorkFolder:
    return WorkFolder(path, {"seed": 0} if identity is None else identity, strict=strict)


@pytest.mark.parametrize(
    ("folder", "left"),
    [
        (".work/study/variant/seed=0", {".work"}),
        ("run/.work/seed=0", {"run"}),
        ("scratch/mine/seed=0", {"scratch", "scratch/mine"}),  # a user's folders stay, empty or not
    ],
)
def test_only_empty_folders_inside_dot_work_are_removed(tmp_path, folder, left):
    work = made(tmp_path / folder)
    work.open(overwrite=False)
    work.remove()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == left


def test_a_refused_start_leaves_the_folder_unlocked(tmp_path):
    work = made(tmp_path / ".work" / "seed=0")
    work.open(overwrite=False)
    work.close()
    with pytest.raises(UserError, match="seed was 0, now 1"):
        made(work.path, {"seed": 1}).open(overwrite=False)
    assert [path.name for path in work.path.parent.iterdir()] == ["seed=0"]
    work.open(overwrite=False)


@pytest.mark.parametrize("content", ["[1]", "null", "{", '"x"'])
def test_a_damaged_identity_is_one_sentence(tmp_path, content):
    work = made(tmp_path / "seed=0")
    work.path.mkdir()
    (work.path / "identity.json").write_text(content)
    with pytest.raises(UserError, match=r"identity\.json .*; delete .*seed=0 and start again\."):
        work.open(overwrite=False)
