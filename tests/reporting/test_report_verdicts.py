"""Verdicts on claims: from the same seeds and test images of all variants, by the interval of their difference."""

from __future__ import annotations

import math

import pytest
from made_runs import MadeVariant, accuracies, make_study, write_latencies

from convatlas.core.errors import UserError
from convatlas.reporting.reading import read_study
from convatlas.reporting.report import write_report
from convatlas.reporting.statistics import LOOKS, estimate
from convatlas.reporting.verdicts import decided, judge, tally
from convatlas.reporting.wording import duration


@pytest.fixture
def verdict(tmp_path):
    """Return a function that judges one claim over variants."""

    def judged(holds, **variants):
        study_file, runs = make_study(
            tmp_path, variants, claims=[{"says": "It is so.", "holds": [holds], "note": None}]
        )
        [entry] = judge(read_study(study_file, runs))
        return entry

    return judged


GOOD = MadeVariant(test=accuracies(0.95, 0.96, 0.94))
POOR = MadeVariant(test=accuracies(0.85, 0.87, 0.84))
NOISY = MadeVariant(test=accuracies(0.99, 0.90, 0.94))


def test_a_clear_difference_is_confirmed_and_its_opposite_is_not(tmp_path):
    claims = [
        {"says": "a", "holds": ["error[good] < error[poor]"]},
        {"says": "b", "holds": ["error[good] > error[poor]"]},
    ]
    study = read_study(*make_study(tmp_path, {"good": GOOD, "poor": POOR}, claims=claims))
    assert [entry.verdict for entry in judge(study)] == ["confirmed", "refuted"]
    assert tally(judge(study)) == "1 confirmed and 1 refuted"


def test_seeds_are_paired(verdict):
    """The scores overlap, but in every seed the second is better by about the same."""
    shifted = MadeVariant(test=accuracies(0.96, 0.971, 0.95))
    assert verdict("accuracy[shifted] > accuracy[good]", good=GOOD, shifted=shifted).verdict == "confirmed"


def test_an_interval_across_the_border_decides_nothing(verdict):
    assert verdict("accuracy[noisy] > accuracy[good]", good=GOOD, noisy=NOISY).verdict == "undecided"


def test_a_difference_within_the_margin_is_none(verdict):
    """0.2 points about nothing; the margin of scores is one point, and other figures have none unless it is stated."""
    same = MadeVariant(test=accuracies(0.951, 0.9595, 0.9405))
    entry = verdict("accuracy[same] > accuracy[good]", good=GOOD, same=same)
    assert (entry.verdict, entry.kind) == ("no difference", "measured")
    found = estimate([0.001, -0.0005, 0.0005])
    assert decided(found, ">", 0.0001) == decided(found, ">", None) == "undecided"
    assert decided(estimate([0.02, 0.0201, 0.0199]), ">", 0.03) == "confirmed"  # it lies within, and yet it is one


def test_an_undecided_claim_says_how_many_seeds_would_decide(verdict):
    entry = verdict("accuracy[noisy] > accuracy[good]", good=GOOD, noisy=NOISY)
    needed = entry.checked[0].needed
    assert entry.checked[0].interval.endswith(f"{needed} seeds would probably decide it")
    found = estimate([0.04, -0.06, 0.0])
    assert decided(found.with_seeds(needed), ">", 0.01) != "undecided"
    assert decided(found.with_seeds(needed - LOOKS[-1]), ">", 0.01) == "undecided"


def test_the_test_images_are_a_sample_too(tmp_path):
    """Both seeds of each agree; on 16 images one more right answer is no evidence, and on 1,600 a hundred more are."""
    claims = [{"says": "b", "holds": ["error[b] < error[a]"]}]
    for times, expected in ((1, "undecided"), (100, "confirmed")):
        labels = [0] * 16 * times
        said = {key: ([1] * wrong + [0] * (16 - wrong)) * times for key, wrong in (("a", 4), ("b", 3))}
        made = {
            key: MadeVariant(
                test=accuracies(*[each.count(0) / len(each)] * 3), answers=dict.fromkeys(range(3), each), labels=labels
            )
            for key, each in said.items()
        }
        [entry] = judge(read_study(*make_study(tmp_path / str(times), made, claims=claims)))
        assert entry.verdict == expected


def test_what_is_counted_is_a_kind_of_its_own(verdict):
    made = MadeVariant(test=accuracies(0.9, 0.9), costs={"parameters": 4})
    entry = verdict("parameters[a] < 5", a=made)
    assert (entry.kind, entry.verdict, entry.checked[0].interval) == (
        "counted",
        "confirmed",
        "left side 4; claimed < 5",
    )


def test_nets_that_are_counted_and_not_trained_need_no_runs(tmp_path):
    counted = {
        "large": {"title": "Large net", "costs": {"macs": 4.9e9}},
        "small": {"title": "Small net", "costs": {"macs": 0.57e9}},
    }
    holds = ["macs[large] / macs[small] >= 8", "macs[large] / macs[small] >= 9", "parameters[small] < 1"]
    claims = [{"says": text, "holds": [text]} for text in holds]
    study = read_study(*make_study(tmp_path, {"good": GOOD}, counted=counted, claims=claims))
    confirmed, refuted, unknown = judge(study)
    assert [each.verdict for each in (confirmed, refuted, unknown)] == ["confirmed", "refuted", "not tested"]
    assert confirmed.kind == "counted"
    assert "macs of Large net 4.90\u202fG" in confirmed.checked[0].figures
    assert unknown.checked[0].reason == "parameters is no cost that is counted"


def test_a_printed_number_is_the_border(verdict):
    entry = verdict("accuracy[good] - accuracy[poor] <= 0.02", good=GOOD, poor=POOR)
    assert entry.verdict == "refuted"
    assert entry.checked[0].interval.startswith("left side 0.09667, 98 % interval 0.07")
    assert entry.checked[0].interval.endswith("(3 seeds); claimed <= 0.02")


def test_a_claim_of_two_parts_fails_with_one(tmp_path):
    holds = ["error[good] < error[poor]", "train_seconds[good] < 1"]
    claims = [{"says": "both", "holds": holds, "note": "mind"}]
    [entry] = judge(read_study(*make_study(tmp_path, {"good": GOOD, "poor": POOR}, claims=claims)))
    assert [part.verdict for part in entry.checked] == ["confirmed", "refuted"]
    assert entry.verdict == "refuted"


@pytest.mark.parametrize("claim", ["accuracy[b] > accuracy[a]", "accuracy[b] < accuracy[a]", "error[a] <= error[a]"])
def test_seeds_that_all_differ_by_one_image_decide_nothing(verdict, claim):
    """Their interval has no width but for rounding errors, though other test images would move it."""
    images = [340, 345, 351]
    a, b = (MadeVariant(test=accuracies(*[(n + more) / 360 for n in images])) for more in (0, 1))
    entry = verdict(claim, a=a, b=b)
    assert (entry.verdict, entry.checked[0].verdict) == ("undecided", "undecided")
    assert entry.checked[0].interval.endswith("its noise is not known")


@pytest.mark.parametrize(
    ("claim", "verdict_of_it"),
    [
        ("macs_of_weights[a] <= 0", "confirmed"),
        ("parameters[a] < 5", "confirmed"),
        ("parameters[a] > 5", "refuted"),
    ],
)
def test_what_is_counted_needs_no_width_and_may_be_zero(verdict, claim, verdict_of_it):
    made = MadeVariant(test=accuracies(0.9, 0.9), costs={"parameters": 4, "macs_of_weights": 0})
    assert verdict(claim, a=made).verdict == verdict_of_it


def test_only_seeds_that_all_variants_have_count(verdict):
    other = MadeVariant(test={1: {"accuracy": 0.5}, 2: {"accuracy": 0.6}})
    entry = verdict("accuracy[other] < accuracy[good]", good=GOOD, other=other)
    assert "(2 seeds)" in entry.checked[0].interval


def test_missing_runs_and_figures_are_said(verdict, tmp_path):
    entry = verdict("accuracy[none] < accuracy[good]", good=GOOD, none=MadeVariant(test={}, title="Net X"))
    assert entry.verdict == "not tested"
    assert entry.checked[0].reason == "no run has accuracy of Net X"


def test_a_claim_on_a_variant_that_the_plan_does_not_have_is_not_tested(verdict):
    entry = verdict("accuracy[other] < accuracy[good]", good=GOOD)
    assert (entry.verdict, entry.checked[0].reason) == ("not tested", "the plan has no variant other")


def test_one_seed_is_not_enough_for_what_is_measured_but_for_what_is_counted(tmp_path):
    one = MadeVariant(test=accuracies(0.9), costs={"parameters": 100})
    more = MadeVariant(test=accuracies(0.8), costs={"parameters": 200})
    claims = [{"says": s, "holds": [s]} for s in ("error[a] < error[b]", "parameters[a] < parameters[b]")]
    study = read_study(*make_study(tmp_path, {"a": one, "b": more}, claims=claims))
    assert [entry.verdict for entry in judge(study)] == ["not tested", "confirmed"]


def test_a_value_that_is_not_finite_confirms_nothing(verdict):
    entry = verdict("error[lost] > error[good]", good=GOOD, lost=MadeVariant(test=accuracies(0.1, math.nan, 0.1)))
    assert (entry.verdict, entry.checked[0].reason) == ("not tested", "a value is not finite")


def test_the_learning_curves_are_figures_too(verdict):
    history = {
        seed: [{"epoch": 1, "train/loss": 2.0}, {"epoch": 2, "train/loss": 0.5 + seed / 100}] for seed in range(3)
    }
    curves = MadeVariant(test=accuracies(0.9, 0.9, 0.9), history=history)
    assert verdict("history('train/loss', 2)[curves] <= 1", curves=curves).verdict == "confirmed"


def test_the_page_shows_verdict_figures_and_plain_claims(tmp_path):
    claims = [
        {"says": "Good is <better>.", "holds": ["error[good] < error[poor]"], "note": "A remark."},
        "Nobody can tell.",
    ]
    study_file, runs = make_study(tmp_path, {"good": GOOD, "poor": POOR}, claims=claims)
    write_report(study_file, runs, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert '<strong class="verdict confirmed">Confirmed</strong> Good is &lt;better&gt;.' in page
    assert "accuracy" not in page.split('id="claims"')[1].split("</section>")[0]
    assert "error of good 5.00" in page
    assert "A remark." in page
    assert '<strong class="verdict not-tested">Not tested</strong> Nobody can tell.' in page


LATENCY = [{"says": "it answers in less than half of the time", "holds": ["latency[good] / latency[poor] < 0.5"]}]


@pytest.mark.parametrize(("figure", "times"), [("latency", 1), ("training_step", 10)])
def test_seconds_of_the_nets_in_turns_decide_a_claim(figure, times, tmp_path):
    """They differ from seed to seed by more than their ratio does."""
    claims = [{"says": "it takes less than half of the time", "holds": [f"{figure}[good] / {figure}[poor] < 0.5"]}]
    study_file, runs = make_study(tmp_path, {"good": GOOD, "poor": POOR}, claims=claims)
    seconds = {"good/seed=0": 0.001, "good/seed=1": 0.002, "good/seed=2": 0.0015}
    seconds |= {
        key.replace("good", "poor"): 2.5 * value * (1 + 0.01 * n) for n, (key, value) in enumerate(seconds.items())
    }
    write_latencies(runs / "overview", seconds)
    (entry,) = judge(read_study(study_file, runs))
    assert (entry.verdict, entry.kind) == ("confirmed", "measured")
    assert f"{figure.replace('_', ' ')} of good {duration(0.0015 * times)}" in entry.checked[0].figures


def test_latencies_that_were_not_taken_are_told_with_the_command(tmp_path):
    study_file, runs = make_study(tmp_path, {"good": GOOD, "poor": POOR}, claims=LATENCY)
    (entry,) = judge(read_study(study_file, runs))
    assert entry.verdict == "not tested"
    reason = "no run has latency of good; `convatlas measure run=runs/overview record=true` measures it"
    assert entry.checked[0].reason == reason


def test_latencies_of_nets_that_were_trained_anew_since_do_not_count(tmp_path):
    study_file, runs = make_study(tmp_path, {"good": GOOD, "poor": POOR}, claims=LATENCY)
    write_latencies(runs / "overview", {"good/seed=0": 0.001}, identity={"seed": 0})
    assert [run.speed for variant in read_study(study_file, runs).variants for run in variant.runs] == [None] * 6


def test_a_broken_file_of_latencies_is_one_sentence(tmp_path):
    study_file, runs = make_study(tmp_path, {"good": GOOD})
    (runs / "overview" / "speed.json").write_text("{}")
    with pytest.raises(UserError, match=r"speed\.json: .*; measure again .* or delete it"):
        read_study(study_file, runs)
