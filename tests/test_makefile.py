"""`make` works in a folder of any name, and says what is missing; nothing is set up or trained here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers import ROOT


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Unpack the files that make looks at, without git, into a folder with blanks and brackets in its name."""
    folder = tmp_path / "a (new) project's folder"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "params.yaml", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    (folder / ".venv" / ".ready").touch()
    for name in ("dvc", "python"):
        program = folder / ".venv" / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} of $(dirname "$0"): $*" >> "{folder}/called.txt"\n')
        program.chmod(0o755)
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make there; git looks for no repository above the folder."""
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_make_uses_the_environment_of_a_folder_of_any_name(sources):
    subprocess.run(["git", "init", "--quiet"], cwd=sources, check=True)
    done = make(sources, "repro")
    assert done.returncode == 0, done.stderr
    assert (sources / "called.txt").read_text() == f"dvc of {sources / '.venv' / 'bin'}: repro\n"


def test_setup_installs_into_the_environment_of_a_folder_of_any_name(sources):
    (sources / ".venv" / ".ready").unlink()
    uv = sources / ".venv" / "bin" / "uv"
    uv.write_text(f'#!/bin/sh\necho "uv for $VIRTUAL_ENV" >> "{sources}/called.txt"\n')
    uv.chmod(0o755)
    done = make(sources, "setup")
    assert done.returncode == 0, done.stderr
    assert f"uv for {sources / '.venv'}\n" in (sources / "called.txt").read_text()
    assert (sources / ".venv" / ".ready").exists()


def test_setup_for_the_processor_alone_takes_the_same_versions_without_what_is_for_gpus(sources):
    (sources / ".venv" / ".ready").unlink()
    uv = sources / ".venv" / "bin" / "uv"
    uv.write_text(f'#!/bin/sh\necho "uv $*" >> "{sources}/called.txt"\n')
    uv.chmod(0o755)
    done = make(sources, "setup", "TORCH=cpu")
    assert done.returncode == 0, done.stderr
    lock, kept = ((sources / name).read_text() for name in ("requirements.lock", ".venv/cpu.lock"))
    names, kept_names = (set(re.findall(r"^([a-z][^=\[ ]*)", text, flags=re.MULTILINE)) for text in (lock, kept))
    left_out = names - kept_names
    assert {"torch", "torchvision", "triton", "nvidia-cublas"} <= left_out
    assert all(re.match(r"torch$|torchvision$|triton$|nvidia-|cuda-", name) for name in left_out)
    assert lock.count("--hash") > kept.count("--hash") > 500
    (version,) = re.findall(r"^torch==(\S+)", lock, flags=re.MULTILINE)
    (call,) = [line for line in (sources / "called.txt").read_text().splitlines() if "--torch-backend=cpu" in line]
    assert f" torch=={version} " in f"{call} "


def test_make_without_git_says_what_the_pipeline_needs(sources):
    done = make(sources, "repro")
    assert done.returncode == 2
    assert "git init" in done.stderr
    assert not (sources / "called.txt").exists(), "nothing was started"
