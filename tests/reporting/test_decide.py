"""Which variants get more seeds, and what of them fits into the time."""

from __future__ import annotations

import yaml
from made_runs import MadeVariant, accuracies, make_study, write_latencies

from convatlas import decide
from convatlas.reporting.reading import read_study
from convatlas.reporting.verdicts import judge

CLAIMS = [{"says": text, "holds": [text]} for text in ("error[a] < error[b]", "error[a] < error[c]")]


def test_only_the_variants_of_an_undecided_claim_get_the_seeds_of_its_next_look(tmp_path):
    made = {
        "a": MadeVariant(test=accuracies(0.95, 0.951, 0.949)),
        "b": MadeVariant(test=accuracies(0.80, 0.803, 0.798)),
        "c": MadeVariant(test=accuracies(0.99, 0.85, 0.95), train_seconds=20.0),
    }
    study = read_study(*make_study(tmp_path, made, claims=CLAIMS))
    wanted = decide.requests([(study, judge(study))], most=12)
    assert [(each.key, each.seeds) for each in wanted] == [
        ("overview/a", (0, 1, 2, 3, 4, 5)),
        ("overview/c", (0, 1, 2, 3, 4, 5)),
    ]
    assert wanted[1].seconds == 3 * 21  # the three that it has took 20, 21 and 22
    assert decide.requests([(study, judge(study))], most=3) == []


def test_no_seeds_are_trained_for_a_latency(tmp_path):
    made = {key: MadeVariant(test=accuracies(0.9, 0.9, 0.9)) for key in "ab"}
    study_file, runs = make_study(tmp_path, made, claims=[{"says": "", "holds": ["latency[a] < latency[b]"]}])
    seconds = {f"{key}/seed={seed}": value for key in "ab" for seed, value in enumerate((0.001, 0.003, 0.002))}
    write_latencies(runs / "overview", seconds | {"a/seed=0": 0.0012, "a/seed=1": 0.0028})
    study = read_study(study_file, runs)
    assert [entry.verdict for entry in judge(study)] == ["undecided"]
    assert decide.requests([(study, judge(study))], most=12) == []


def test_requests_are_taken_in_their_order_while_they_fit():
    wanted = [decide.Request(key, (0, 1), 40.0) for key in "abc"]
    assert [each.key for each in decide.within(wanted, 100)] == ["a", "b"]
    assert [*decide.within(wanted, 10)] == []
    assert [*decide.within(wanted, None)] == wanted


def test_seeds_are_added_beside_those_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("scale: laptop\nseeds_of: {x/a: [0, 1], x/b: [0]}\n")
    decide.add_seeds({"x/a": (0, 1, 2)})
    assert yaml.safe_load((tmp_path / "params.yaml").read_text()) == {
        "scale": "laptop",
        "seeds_of": {"x/a": [0, 1, 2], "x/b": [0]},
    }
