"""Whole searches at the smallest scale: what they leave, that they go on after a kill, and what they never see."""

from __future__ import annotations

import json
import os
import shutil
from html import escape

import pytest
import torch
import yaml

from convatlas.core.errors import UserError
from convatlas.models.classification.searched import searched
from convatlas.models.costs import on_meta_device
from convatlas.search import driver
from convatlas.search.driver import STRATEGIES, run_phases, run_search
from convatlas.search.random_search import RandomSearch
from convatlas.search.strategy import Context
from convatlas.search.tracking import SearchTracker
from helpers import assert_one_sentence

QUICK = ["fbnet_dnas", "nasnet_rl", "enas", "darts", "random"]
SLOW = [pytest.param("compound_scaling", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", QUICK + SLOW)
def test_a_search_leaves_a_net_that_can_be_built_and_a_report(search, name):
    run = search(name)
    folder = run_search(run)
    result = json.loads((folder / "result.json").read_text())
    for found in result["found"]:
        file = folder / f"{found}.yaml"
        assert yaml.safe_load(file.read_text())["found"]["search"] == name
        net = on_meta_device(lambda file=file: searched(str(file), num_classes=10, in_channels=1)).eval()
        assert net(torch.rand(1, 1, 16, 16, device="meta")).shape == (1, 10)
    best = max((row for row in rows_of(folder / "search.csv") if row["reward"]), key=lambda row: float(row["reward"]))
    if name != "compound_scaling":  # whose best coefficients are several nets
        assert escape(best["architecture"]) in (folder / "report.html").read_text()
    assert result["multiply_adds"]["search"] > 0
    assert not (run.work_dir).exists()


def rows_of(file):
    import csv

    with file.open() as opened:
        return list(csv.DictReader(opened))


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(
    "name", ["fbnet_dnas", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nasnet_rl", "enas", "darts"))]
)
def test_a_killed_search_goes_on_to_the_same_bits(search, monkeypatch, name):
    """NASNet's first kill comes in the middle of a minibatch, whose first reward it has not learned from yet."""
    undisturbed = run_search(search(name, folder="undisturbed"))
    save = driver._save

    def save_and_die(file, phase, strategy):
        save(file, phase, strategy)
        raise KilledError

    monkeypatch.setattr(driver, "_save", save_and_die)
    for _ in range(2):  # killed after its first and after its second step
        with pytest.raises(KilledError):
            run_search(search(name, folder="killed"))
    monkeypatch.setattr(driver, "_save", save)
    killed = run_search(search(name, folder="killed"))
    for file in ("found.yaml", "search.csv", "result.json"):
        one, other = (read(folder / file) for folder in (undisturbed, killed))
        assert one == other


def read(file):
    """Read a file without the folder's own name, which the head of an architecture file mentions."""
    return [line for line in file.read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    "content", [b"", b"no archive", {"step": 1}, {"step": 1, "rows": [], "seconds": 0.0, "strategy": 3}]
)
def test_a_damaged_state_is_one_sentence(search, tmp_path, content):
    run = search("random")
    file = tmp_path / "search.state"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(UserError, match=r"search\.state cannot be read \(\w+\); delete .* and search again\."):
        driver._load(file, "search", STRATEGIES["random"](Context(run, None, torch.device("cpu"), None, None)))


def test_deterministic_searches_set_what_cublas_needs(search, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    run_search(search("random"))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_two_searches_with_one_seed_find_the_same_and_another_seed_is_another_search(search):
    one, other, third = (
        run_search(search("fbnet_dnas", *more, folder=f"out{number}"))
        for number, more in enumerate(([], [], ["seed=1"]))
    )
    assert read(one / "found.yaml") == read(other / "found.yaml")
    assert (one / "search.csv").read_bytes() == (other / "search.csv").read_bytes()
    assert (one / "search.csv").read_bytes() != (third / "search.csv").read_bytes()


def test_a_search_opens_no_file_of_the_other_splits(search, prepared_digits, tmp_path):
    copied = tmp_path / "digits"
    shutil.copytree(prepared_digits, copied)
    for file in [*copied.glob("test_*"), *copied.glob("validation_*")]:
        file.unlink()
    whole = run_search(search("fbnet_dnas", folder="whole"))
    without = run_search(search("fbnet_dnas", f"data.prepared={copied}", folder="without"))
    assert (whole / "search.csv").read_bytes() == (without / "search.csv").read_bytes()


def test_a_net_is_judged_alike_by_every_search_and_differently_with_another_seed(context):
    """Nets differ in their architecture alone: random search draws its weights and batches no otherwise."""
    candidates = "search.space.candidates=[k3_e1, k3_e3, k5_e1_g2, skip]"
    one, other, third = context("fbnet_dnas"), context("random", candidates), context("fbnet_dnas", "seed=1")
    random = RandomSearch(other, budget=1)
    row = random.advance(0)[0]
    decisions = random.best[1]
    first, again = one.judge(decisions), other.judge(decisions)
    assert first == again
    assert row["loss"] == first.loss
    assert third.judge(decisions).loss != first.loss


def test_random_search_beside_has_the_same_budget_and_never_more(context):
    found = context("fbnet_dnas", "search.random_beside=true", "search.strategy.epochs=3")
    work = found.run.work_dir
    work.mkdir()
    ours, random = run_phases(found, work, SearchTracker())
    again = RandomSearch(found, budget=ours.spent)
    again.spent = random.spent
    assert random.spent <= ours.spent
    assert again.done(random.step)  # another net would have exceeded it
    assert random.rows
    assert list(random.architectures) == ["random"]


def test_a_finished_search_is_not_repeated_and_other_settings_are_refused(search, capsys):
    folder = run_search(search("random"))
    before = (folder / "result.json").stat().st_mtime_ns
    run_search(search("random"))
    assert "finished already" in capsys.readouterr().out
    assert (folder / "result.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"holds a finished search with other settings.*overwrite=true"):
        run_search(search("random", "search.proxy.lr=0.05"))
    run_search(search("random", "search.proxy.lr=0.05"), strict=False)  # as a stage, run because something changed
    assert (folder / "result.json").stat().st_mtime_ns != before


@pytest.mark.parametrize("more", [[], ["overwrite=true"]])
def test_a_folder_of_something_else_is_refused_and_left_alone(search, tmp_path, more):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out holds something else than a search.*choose another output_dir"):
        run_search(search("random", *more))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "work").exists()


def test_a_search_that_fails_at_its_end_leaves_no_folder_and_goes_on_there(search, monkeypatch, tmp_path):
    monkeypatch.setattr(driver, "_write_end", lambda *_: (_ for _ in ()).throw(KilledError))
    with pytest.raises(KilledError):
        run_search(search("random"))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr(driver.RandomSearch, "advance", None)  # nothing is searched again
    assert (run_search(search("random")) / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("fbnet_dnas", ["search.space.candidates=[skip]"], r"layer 1 .* has no valid candidate among skip"),
        ("fbnet_dnas", ["search.strategy.frozen_epochs=2"], r"frozen_epochs=2 leaves none of epochs=2"),
        ("darts", ["search.space=null"], r"strategy\.kind=darts searches space\.kind=darts, not None"),
        ("fbnet_dnas", ["search.latency=null"], r"needs latency"),
        ("nasnet_rl", ["search.space.operations=[identity, conv_9x9]"], r"conv_9x9 is not known"),
        ("darts", ["search.space.operations=[none]"], r"none is not known"),
        ("random", ["search.weights_share=0.999"], r"weights_share=0\.999: the \d+ training images of digits cannot"),
        ("random", ["data.prepared=nowhere"], r"data=digits is not prepared"),
        ("random", ["data=heart_phantom"], r"for segmentation; a search needs data for classification"),
    ],
)
def test_what_a_person_can_get_wrong_is_one_sentence(search, name, overrides, message):
    with pytest.raises(UserError, match=message):
        run_search(search(name, *overrides))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search=fbnet_dnaz"], ["search=fbnet_dnaz", "Did you mean fbnet_dnas"]),
        (["search.strategy.epochs=0"], ["search.strategy", "epochs=0", "greater than or equal to 1"]),
        (["search.strategy.epoch=3"], ["search.strategy.epoch", "Did you mean search.strategy.epochs"]),
        (["search.finals.compared.fbnet_c=['model=fbnet_smal']"], ["model=fbnet_smal", "Did you mean fbnet_small"]),
        (["model=lenet5"], ["model"]),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_leaves_nothing(enter, prepared_digits, tmp_path, arguments, words):
    paths = [f"data.prepared={prepared_digits}", f"output_dir={tmp_path / 'out'}", f"work_dir={tmp_path / 'work'}"]
    entered = enter("search.__main__", "tracking=none", *paths, *arguments)
    assert_one_sentence(entered, *words)
    assert list(tmp_path.iterdir()) == []
