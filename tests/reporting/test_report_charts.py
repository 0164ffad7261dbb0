import itertools
import json
import math

import pytest
from made_runs import COSTS, MadeVariant, accuracies, make_study, rising_history

from convatlas.reporting.charts import HUES, REST, colours, scale
from convatlas.reporting.curves import gradient_chart, inner_curves, learning_curves
from convatlas.reporting.reading import read_study
from convatlas.reporting.study import thinned
from convatlas.reporting.trade_offs import trade_offs
from convatlas.reporting.years import by_year


def rows(chart):
    return next(source["values"] for source in chart.vega["data"] if source["name"] == "rows")


def group(tmp_path, variants, **options):
    return read_study(*make_study(tmp_path, variants, **options)).groups[0]


def test_a_curve_is_the_mean_over_seeds_and_its_band_their_range(tmp_path):
    history = {seed: rising_history("val/accuracy", scores) for seed, scores in enumerate([(0.5, 0.6), (0.7, 0.9)])}
    made = {"a": MadeVariant(test=accuracies(0.9, 0.9), history=history)}
    loss, score, rate = learning_curves(group(tmp_path, made))
    means = [row for row in rows(score) if "m" in row]
    assert [(row["e"], row["m"], row["l"], row["h"]) for row in means] == [(1, 60, 50, 70), (2, 75, 60, 90)]
    of_seeds = [(row["k"], row["e"], row["s"]) for row in rows(score) if "s" in row]
    assert of_seeds == [(0, 1, 50), (1, 1, 70), (0, 2, 60), (1, 2, 90)]
    assert [row["m"] for row in rows(loss) if "m" in row] == [2, 1]
    assert {row["m"] for row in rows(rate)} == {0.1}


def test_a_single_seed_has_no_band(tmp_path):
    _, score, _ = learning_curves(group(tmp_path, {"a": MadeVariant(test=accuracies(0.9))}))
    assert all("l" not in row for row in rows(score))
    assert "area" not in {mark["type"] for mark in score.vega["marks"]}


@pytest.mark.parametrize(("scores", "seen"), [((0.5,), 1), ((0.5, 0.6), 0)])
def test_one_epoch_is_a_point_that_is_seen(tmp_path, scores, seen):
    made = {"a": MadeVariant(test=accuracies(0.9), history={0: rising_history("val/accuracy", scores)})}
    _, score, _ = learning_curves(group(tmp_path, made))
    (points,) = [mark for mark in score.vega["marks"] if mark["type"] == "symbol"]
    assert points["encode"]["update"]["opacity"] == {"value": seen}


def test_a_curve_ends_where_the_first_seed_stopped(tmp_path):
    history = {
        0: rising_history("val/accuracy", (0.5, 0.6, 0.7)),
        1: rising_history("val/accuracy", (0.5, math.nan)),
    }
    variant = group(tmp_path, {"a": MadeVariant(test=accuracies(0.9, 0.9), history=history)}).variants[0]
    assert list(variant.curve("val/accuracy")) == [(1, [0.5, 0.5])]


@pytest.mark.parametrize(("length", "limit"), [(1, 60), (60, 60), (61, 60), (200, 60), (1000, 20)])
def test_a_thinned_curve_keeps_both_ends_and_is_even(length, limit):
    kept = thinned(length, limit)
    assert (kept[0], kept[-1], len(kept)) == (0, length - 1, min(length, limit))
    steps = {b - a for a, b in itertools.pairwise(kept)}
    assert max(steps, default=0) - min(steps, default=0) <= 1


def test_a_large_group_gives_colours_to_its_best(tmp_path):
    made = {f"v{n}": MadeVariant(test=accuracies(0.5 + n / 100)) for n in range(12)}
    made["unfinished"] = MadeVariant(test={})
    found = colours(group(tmp_path, made))
    assert [key for key, colour in found.items() if colour == REST] == ["v0", "v1", "v2", "v3", "unfinished"]
    assert len(set(found.values())) == HUES + 1


def test_trade_offs_mark_the_front_and_name_the_price(tmp_path):
    def made(accuracy, parameters):
        return MadeVariant(test=accuracies(accuracy, accuracy), costs=COSTS | {"parameters": parameters})

    charts = trade_offs(group(tmp_path, {"a": made(0.9, 1000), "b": made(0.8, 2000), "c": made(0.95, 3000)}))
    assert [chart.title for chart in charts] == [
        "Accuracy against parameters",
        "Accuracy against MACs",
        "Accuracy against training time",
        "Accuracy against memory",
    ]
    found = [(row["v"], row["f"], row["x"], row["y"], row["a"]) for row in rows(charts[0])]
    assert found == [("a", True, 1000, 90, 90), ("c", True, 3000, 95, 95), ("b", False, 2000, 80, 80)]
    assert charts[0].vega["description"].endswith("On the Pareto front, by rising price: a, c.")


def test_a_price_that_was_not_measured_has_no_chart(tmp_path):
    costs = COSTS | {"macs": None, "macs_inference": None}
    made = {name: MadeVariant(test=accuracies(0.9), costs=costs) for name in ("a", "b")}
    assert [chart.title.split()[-1] for chart in trade_offs(group(tmp_path, made))] == ["parameters", "time", "memory"]


def test_diverged_and_unfinished_variants_stay_out_of_the_charts(tmp_path):
    made = {
        "a": MadeVariant(test=accuracies(0.9)),
        "b": MadeVariant(test=accuracies(math.nan), history={0: rising_history("val/accuracy", [math.nan])}),
        "c": MadeVariant(test={}),
        "d": MadeVariant(test=accuracies(0.8)),
    }
    found = group(tmp_path, made)
    for chart in [*learning_curves(found), *trade_offs(found)]:
        if chart.title != "Training loss":
            assert {row["v"] for row in rows(chart)} == {"a", "d"}
        json.dumps(chart.vega, allow_nan=False)


def test_of_many_points_only_the_front_and_the_coloured_are_named(tmp_path):
    made = {
        f"v{n}": MadeVariant(test=accuracies(0.5 + n / 100), costs=COSTS | {"parameters": 1000 - n}) for n in range(25)
    }
    named = {row["v"] for row in rows(trade_offs(group(tmp_path, made))[0]) if row["n"]}
    assert named == {f"v{n}" for n in range(25 - HUES, 25)}


def test_names_are_placed_apart_by_vega(tmp_path):
    made = {name: MadeVariant(test=accuracies(0.9)) for name in ("a", "b")}
    marks = {mark["name"]: mark for mark in trade_offs(group(tmp_path, made))[0].vega["marks"]}
    assert marks["names_marks"]["from"] == {"data": "points_marks"}
    assert [transform["type"] for transform in marks["names_marks"]["transform"]] == ["label"]


@pytest.mark.parametrize(
    ("values", "log", "domain"), [([1, 2], False, [0.93, 2.07]), ([3, 3], False, [2.7, 3.3]), ([0], False, [-1, 1])]
)
def test_an_axis_reaches_a_little_beyond_its_values(values, log, domain):
    assert scale(values, log=log).domain == domain


def test_a_logarithmic_axis_reaches_as_far_in_proportion():
    low, high = scale([1, 100], log=True).domain
    assert (low, high) == (pytest.approx(100**-0.07, rel=1e-4), pytest.approx(100**1.07, rel=1e-4))


def test_where_less_is_better_the_lowest_has_colour_front_and_headline(tmp_path):
    """A score that the table knows as falling, and one whose direction only the runs know."""
    for score, mode in (("mean_squared_error", "max"), ("regret", "min")):
        made = {
            f"v{n}": MadeVariant(
                test={0: {score: 0.1 + n / 100}},
                task="regression",
                monitor=f"val/{score}",
                monitor_mode=mode,
                costs=COSTS | {"parameters": 1000 + n},
                history={0: rising_history(f"val/{score}", (9, 0.5 + n / 100, 0.1 + n / 100))},
            )
            for n in range(10)
        }
        one = group(tmp_path / score, made)
        assert one.best is one.variants[0]
        assert [key for key, colour in colours(one).items() if colour == REST] == ["v8", "v9"]
        assert [row["v"] for row in rows(trade_offs(one)[0]) if row["f"]] == ["v0"]
        assert "The lowest at the end is v0 with 0.1" in learning_curves(one)[1].vega["description"]


def test_what_nets_tell_and_their_gradients_are_drawn(tmp_path):
    epochs = [
        {"epoch": n, "val/accuracy": 0.9, "net/active_blocks": 0.75, "gradient/001": 0.1 / n, "gradient/002": 1.0}
        for n in (1, 2)
    ]
    made = MadeVariant(test=accuracies(0.9, 0.9), title="Net", history={0: epochs, 1: epochs})
    one = group(tmp_path, {"net": made}, seeds=[0, 1])
    [active] = inner_curves(one)
    assert active.title == "Active blocks"
    assert [row["m"] for row in rows(active) if "m" in row] == [0.75, 0.75]
    gradients = gradient_chart(one)
    assert gradients is not None
    assert [(row["n"], row["m"]) for row in rows(gradients)] == [(1, 0.1), (2, 1.0)]
    assert "lowest is 0.1, at layer 1 of Net" in gradients.vega["description"]


def test_a_study_without_such_figures_has_no_such_charts(tmp_path):
    one = group(tmp_path, {"net": MadeVariant(test=accuracies(0.9))})
    assert inner_curves(one) == []
    assert gradient_chart(one) is None


def test_scores_stand_by_the_year_of_the_paper_beside_what_the_lecture_prints(tmp_path):
    made = {
        name: MadeVariant(test=accuracies(0.5 + number / 10), title=name.upper(), about={"year": 1998 + 5 * number})
        for number, name in enumerate("abcd")
    }
    printed = {"imagenet_top5_error": {"alexnet_2012": 15, "vgg_2014": 7.4}, "depth": {"vgg": 19}}
    study = read_study(*make_study(tmp_path, made, printed=printed))
    ours, theirs = by_year(study, study.groups[0])
    assert [(row["n"], row["x"], row["y"]) for row in rows(ours)][-1] == ("D", 2013, 80)
    assert theirs.title == "As the lecture prints it: imagenet top5 error"
    assert [(row["n"], row["x"], row["y"]) for row in rows(theirs)] == [("alexnet", 2012, 15), ("vgg", 2014, 7.4)]
    few = read_study(*make_study(tmp_path / "few", {"a": made["a"], "b": made["b"]}))
    assert by_year(few, few.groups[0]) == []
