"""`convatlas COMMAND`: the entry points under one name, their help, and what a shell completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from convatlas.__main__ import GROUPS, SHELLS, main
from helpers import ROOT, assert_one_sentence

COMMANDS = [name for group in GROUPS.values() for name in group]


def suggestions(line: str) -> list[str]:
    """Return what a shell would offer for the last word of a line."""
    *before, last = line.split(" ")[1:]
    return [item.value for item in ShellComplete(main, {}, "convatlas", "").get_completions(before, last)]


def test_every_command_is_an_entry_point_and_the_help_lists_it(enter):
    shown = enter("__main__", "--help").out
    for name in COMMANDS:
        assert f"\n  {name} " in shown
        if name not in ("repro", "experiments", "completion"):
            folder = ROOT / "src" / "convatlas"
            assert (folder / f"{name}.py").is_file() or (folder / name / "__main__.py").is_file()
    assert all(f"\n{title}:\n" in shown for title in GROUPS)
    assert max(map(len, shown.splitlines())) <= 100


def test_a_command_does_what_its_module_does(enter):
    answers = [
        enter("__main__", "profile", "model=lenet5", "format=json"),
        enter("profile", "model=lenet5", "format=json"),
    ]
    assert json.loads(answers[0].out) == json.loads(answers[1].out)
    assert json.loads(answers[0].out)["parameters"] == 60_000


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "trian: there is no such command. Did you mean train"),
        (["profile", "modl=lenet5"], "modl: there is no such option. Did you mean model"),
        (["completion", "tcsh"], "bash, zsh, fish"),
        (["--verbose"], "--verbose"),
        (["models", "fracta"], "fracta: no net has such a name. Did you mean fractalnet"),
        (["show", "model=fractalnet_small", "input_size=[1,32,32]"], "input_size=[1, 32, 32]: the net takes no such"),
    ],
)
def test_a_wrong_word_is_one_sentence(enter, words, sentence):
    assert_one_sentence(enter("__main__", *words), sentence)


def test_repro_outside_of_git_says_what_is_missing(enter, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(enter("__main__", "repro"), "git init")


def test_help_names_the_options_with_their_defaults(enter):
    shown = enter("evaluate", "--help")
    assert shown.status == 0
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "run=path needed" in lines
    assert 'split=test|validation default "test"' in lines
    assert "Where the run's prepared data lie now, if they were moved." in lines
    composed = enter("train", "--help").out
    assert "model: alexnet, " in composed
    assert "_target_" not in composed, "it is short"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("convatlas tra", ["train", "track"]),
        ("convatlas evaluate spl", ["split="]),
        ("convatlas evaluate split=", ["split=test", "split=validation"]),
        ("convatlas evaluate data=con", ["data=conf/"]),
        ("convatlas train model=nasnet_c", ["model=nasnet_cifar"]),
        ("convatlas train model=densenet_cifar model.gr", ["model.growth_rate="]),
        ("convatlas completion ", list(SHELLS)),
        ("convatlas models ta", ["task="]),
        ("convatlas report over", []),
    ],
)
def test_a_shell_completes(line, offered):
    assert suggestions(line) == offered


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell_asks_the_command(enter, shell):
    script = enter("__main__", "completion", shell).out
    assert f"_CONVATLAS_COMPLETE={shell}_complete" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_bash_completes_a_value_behind_an_equals_sign(tmp_path):
    program = tmp_path / "convatlas"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m convatlas "$@"\n')
    program.chmod(0o755)
    asks = (
        f'PATH="{tmp_path}:$PATH"; eval "$(convatlas completion bash)"; COMP_WORDS=(convatlas evaluate tta=ten); '
        'COMP_CWORD=2; _convatlas_completion convatlas 2>/dev/null; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asks], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.split() == ["tta=ten_crop"]


def test_nets_are_listed_in_lines_that_fit(enter, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    lines = enter("__main__", "models", "rev*", "lenet5").out.splitlines()
    assert [line.split()[0] for line in lines] == ["lenet5", "revnet104", "revnet_cifar", "revnet_small"]
    assert max(map(len, lines)) == 72
    assert lines[0].split()[1:3] == ["0.060M", "0.3M"]


def test_the_layers_of_a_net_are_shown_with_shapes_and_counts(enter):
    shown = enter("__main__", "show", "model=resnet_cifar", "depth=2").out
    row = next(line for line in shown.splitlines() if "Conv2d: 2-1" in line)
    assert row.split()[-2:] == ["3]", "442,368"], "16 * 3 * 9 multiply-adds at each of 32 * 32 places"
    assert "[1, 16, 32, 32]" in row


@pytest.mark.parametrize("words", [["show", "model=lenet5"], ["models", "lenet*"]])
def test_a_reader_that_has_seen_enough_is_no_bug(words):
    """As `| head` does; the pipe is closed before anything is written."""
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "convatlas", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=written, stderr=subprocess.PIPE, text=True, check=False)
    os.close(written)
    assert done.stderr == ""
