"""What stands on the command line: Hydra's grammar, and the plain options of the other commands."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field

from convatlas.core.cli import read_options, split_list
from convatlas.core.config import Section
from convatlas.core.errors import UserError
from convatlas.plan import Options as PlanOptions
from helpers import assert_one_sentence


class Options(Section):
    """Options of each kind."""

    run: Path = Path()
    part: str | None = None
    port: int = 1
    share: float | None = None
    show: bool = True
    format: Literal["text", "json"] = "text"
    images: list[Path] = Field(default=[])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("run=2024", Path("2024")),
        ("run=20261130", Path("20261130")),
        ("run=/x/my,run", Path("/x/my,run")),
        ("run=runs/a/seed=0", Path("runs/a/seed=0")),
        ("run=[x]", Path("[x]")),
        ("run=true", Path("true")),
        ("part=1e3", "1e3"),
        ("part=null", None),
        ("port=5", 5),
        ("share=0.5", 0.5),
        ("share=1e-3", 1e-3),
        ("share=null", None),
        ("show=false", False),
        ("format=json", "json"),
        ("images=a,b", [Path("a"), Path("b")]),
        ("images=[a, b]", [Path("a"), Path("b")]),
        ("images=2024", [Path("2024")]),
    ],
)
def test_a_value_is_read_as_its_option_wants_it(argument, value):
    assert getattr(read_options(Options, [argument]), argument.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("arguments", "images"),
    [(["a", "images=b,c", "d"], "abcd"), (["images=a", "b", "images=[c]"], "abc"), (["images=", "a"], "a"), ([], "")],
)
def test_words_and_their_option_are_one_list(arguments, images):
    assert read_options(Options, arguments, positional="images").images == [Path(name) for name in images]


@pytest.mark.parametrize("argument", ["port=a", "port=1.5", "share=x", "show=7", "format=xml", "portt=1", "word"])
def test_a_wrong_value_names_its_option(argument):
    with pytest.raises(UserError, match=argument.partition("=")[0]):
        read_options(Options, [argument])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("a.b=[24,32]", ["a.b=[24,32]"]),
        ("[a.b=[24,32],c=3]", ["a.b=[24,32]", "c=3"]),
        ("a={x: 1, y: [2,3]},b", ["a={x: 1, y: [2,3]}", "b"]),
        ("a='x,y',b=\"z,]\"", ["a='x,y'", 'b="z,]"']),
        ("[]", []),
        ("", []),
    ],
)
def test_a_list_is_split_at_its_own_commas(text, parts):
    assert split_list(text) == parts


def test_overrides_of_a_plan_keep_their_lists():
    options = read_options(PlanOptions, ["overrides=recipe.augmentation.image_sizes=[24,32]", "seeds=3"])
    assert (options.overrides, options.seeds) == (["recipe.augmentation.image_sizes=[24,32]"], [3])


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("tracking=null", ["tracking=null", "none"]),
        ("model=null", ["model=null", "no such choice"]),
        ("data=", ["data=", "no such choice"]),
        ("recipe/optimizer=3", ["recipe/optimizer=3", "sgd"]),
        ("recipe/optimiser=sgd", ["recipe/optimiser", "Did you mean recipe/optimizer"]),
        ("model=[lenet5,lenet6]", ["lenet6", "Did you mean"]),
        ("=3", ["=3", "name of the option"]),
        ("study=null", ["study=None"]),
        ("study=My Study", ["study='My Study'"]),
        ("data.root=/x/a b(c)", ["data.root=/x/a b(c) cannot be read", """'data.root="/x/a b(c)"'"""]),
        ("data.root=é", ["""'data.root="é"'"""]),
        ("data.root=a=b", ["""'data.root="a=b"'"""]),
        ("data.root='x", ["""'data.root="x"'"""]),
        ("data.root=x,y", ["data.root=x,y has several values", "--multirun", """'data.root="x,y"'"""]),
        ("recipe.epochs=[1", ["recipe.epochs=[1 cannot be read"]),
    ],
)
def test_what_hydra_cannot_read_is_told_in_one_sentence(enter, argument, words):
    assert_one_sentence(enter("train", argument), *words)


def test_the_quoted_form_that_a_message_proposes_is_read(enter):
    for value in ("/x/a b(c)", "é", "a=b", "x,y"):
        entered = enter("train", "--cfg", "job", f'data.root="{value}"')
        assert yaml.safe_load(entered.out)["data"]["root"] == value


def test_the_study_of_a_run_is_an_option(enter):
    for override in ("study=my_experiment", "++study=my_experiment", "experiment=my_experiment"):
        entered = enter("train", "--cfg", "job", "--resolve", override)
        assert yaml.safe_load(entered.out)["study"] == "my_experiment"
    assert yaml.safe_load(enter("train", "--cfg", "job", "--resolve").out)["study"] == "adhoc"


def test_the_pages_answer_to_every_name_of_the_machine() -> None:
    """A browser on another machine asks by a name, and MLflow refuses names that it is not told."""
    from convatlas.ui import DEFAULT_NAMES, allowed_names

    names = allowed_names("box.example")
    assert {"box.example", "box.example:*", socket.gethostname(), f"{socket.gethostname()}:*"} <= set(names)
    assert set(DEFAULT_NAMES) <= set(names)


def test_the_printed_address_is_one_that_other_machines_can_open(enter, tmp_path, monkeypatch) -> None:
    import mlflow

    store = f"sqlite:///{tmp_path / 'runs.db'}"
    mlflow.MlflowClient(store).create_experiment("overview")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setattr(os, "execv", lambda *_: sys.exit(0))  # MLflow's server, which would not end
    printed = enter("ui", "host=0.0.0.0", "port=5123").out
    assert f"overview, table: http://{socket.gethostname()}:5123/" in printed
    assert "0.0.0.0" not in printed
