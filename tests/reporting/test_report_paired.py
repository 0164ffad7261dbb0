"""Variants against the reference, on the same seeds and images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_runs import MadeVariant, accuracies, make_study

from convatlas.core.errors import UserError
from convatlas.core.metrics import metric
from convatlas.reporting.paired import compare, interval_text, reference_of, signed, told_apart
from convatlas.reporting.reading import read_study
from convatlas.reporting.report import write_report
from convatlas.reporting.score_plots import interval_plots
from convatlas.reporting.statistics import estimate

LABELS = [0, 1, 2, 3]
RIGHT, FIRST_WRONG, LAST_WRONG = [0, 1, 2, 3], [9, 1, 2, 3], [0, 1, 2, 9]


def made(*answers, seeds=None, **options):
    """Make a variant that answered so with the seeds 0, 1, ... and has the accuracies that follow from it."""
    numbers = seeds or range(len(answers))
    by_seed = dict(zip(numbers, answers, strict=True))
    test = {seed: {"accuracy": float(np.mean(np.equal(said, LABELS)))} for seed, said in by_seed.items()}
    return MadeVariant(test=test, answers=by_seed, labels=LABELS, **options)


def group(tmp_path, variants, **options):
    return read_study(*make_study(tmp_path, variants, **options)).groups[0]


def interval(values):
    return estimate(values).interval()


def crossed_interval(parts):
    return estimate(parts.mean(axis=1).tolist(), parts.astype(float)).interval()


# ---- the interval ----------------------------------------------------------------------------------------------------


def test_where_seeds_agree_the_images_alone_make_the_interval():
    of_images = np.array([1, 0, 0, -1, 1, 1, 0, 0], dtype=np.int8)
    reach = 1.959963985 * math.sqrt(of_images.var(ddof=1) / 8)
    assert crossed_interval(np.tile(of_images, (3, 1))) == pytest.approx((0.25 - reach, 0.25 + reach))


def test_where_images_agree_the_interval_is_students_over_the_seeds():
    differences = np.repeat(np.array([[1], [0], [1], [-1]], dtype=np.int8), 50, axis=1)
    assert crossed_interval(differences) == pytest.approx(interval([1, 0, 1, -1]))


def test_equal_runs_have_no_difference():
    assert crossed_interval(np.zeros((3, 10), dtype=np.int8)) == (0, 0)


@pytest.mark.parametrize("seed_noise", [0.0, 0.3, 1.0])
def test_it_covers_the_truth_19_times_in_20_however_much_seeds_differ(seed_noise):
    """Answers of two nets to images of many difficulties; the truth is the mean over very many such studies."""
    draws = np.random.default_rng(0)

    def differences(images):
        difficulty, own = draws.normal(2, 1.2, images), draws.normal(0, 0.5, (2, 1, images))
        noise = draws.normal(0, seed_noise, (2, 3, 1)) + draws.normal(0, 0.6, (2, 3, images))
        right = difficulty + own + noise + np.array([0, 0.3])[:, None, None] > 0
        return right[1].astype(np.int8) - right[0].astype(np.int8)

    truth = np.mean([differences(2000).mean() for _ in range(200)])
    intervals = [crossed_interval(differences(200)) for _ in range(300)]
    assert 0.91 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.99


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_a_pair_counts_the_images_that_one_alone_gets_right(tmp_path):
    variants = {"a": made(FIRST_WRONG, FIRST_WRONG), "b": made(RIGHT, LAST_WRONG)}
    [pair] = compare(group(tmp_path, variants))
    assert (pair.variant.key, pair.seeds, pair.difference) == ("b", 2, 0.125)
    assert (pair.only_variant, pair.only_reference) == (1, 0.5)
    assert pair.interval == pytest.approx(crossed_interval(np.array([[1, 0, 0, 0], [1, 0, 0, -1]], dtype=np.int8)))


def test_only_common_seeds_count(tmp_path):
    variants = {
        "a": made(RIGHT, RIGHT, seeds=[0, 1]),
        "b": made(FIRST_WRONG, LAST_WRONG, seeds=[1, 2]),
        "c": made(FIRST_WRONG, seeds=[2]),
        "d": MadeVariant(test={}),
    }
    one_common, *none_common = compare(group(tmp_path, variants))
    assert (one_common.seeds, one_common.difference, one_common.interval) == (1, -0.25, None)
    assert one_common.verdict == "–"
    for pair in none_common:
        assert (pair.seeds, pair.difference, pair.interval, pair.only_variant) == (0, None, None, None)


def test_the_reference_is_the_first_variant_with_a_result(tmp_path):
    one = group(tmp_path, {"unfinished": MadeVariant(test={}), "a": made(RIGHT), "b": made(RIGHT)})
    assert reference_of(one).key == "a"
    assert [pair.variant.key for pair in compare(one)] == ["unfinished", "b"]


def test_other_tasks_are_compared_by_the_score_of_each_seed(tmp_path):
    def segmentation(*values):
        test = {seed: {"dice": value} for seed, value in enumerate(values)}
        return MadeVariant(test=test, task="segmentation", monitor="val/dice")

    [pair] = compare(group(tmp_path, {"a": segmentation(0.8, 0.81, 0.8), "b": segmentation(0.9, 0.92, 0.93)}))
    assert pair.interval == pytest.approx(interval([0.1, 0.11, 0.13]))
    assert (pair.verdict, pair.only_variant) == ("higher", None)


def test_runs_tested_on_other_images_are_not_paired_by_image(tmp_path):
    other = MadeVariant(test=accuracies(0.9, 0.8), answers={0: [1, 1], 1: [1, 0]}, labels=[1, 1])
    [pair] = compare(group(tmp_path, {"a": made(RIGHT, RIGHT), "b": other}))
    assert (pair.only_variant, pair.seeds) == (None, 2)
    assert pair.interval == pytest.approx(interval([-0.1, -0.2]))


def test_a_broken_file_of_predictions_is_named_with_a_remedy(tmp_path):
    study_file, runs = make_study(tmp_path, {"a": made(RIGHT), "b": made(RIGHT)})
    (runs / "overview" / "b" / "seed=0" / "predictions.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"b/seed=0/predictions\.parquet is not a readable table.*; delete"):
        compare(read_study(study_file, runs).groups[0])


# ---- on the page -----------------------------------------------------------------------------------------------------


def test_intervals_share_a_scale_with_zero_on_it(tmp_path):
    variants = {"a": made(RIGHT, RIGHT), "b": made(FIRST_WRONG, FIRST_WRONG), "c": MadeVariant(test={})}
    pairs = compare(group(tmp_path, variants))
    (drawn, empty), (low, high) = interval_plots(pairs)
    assert low <= -0.25 <= 0 <= high
    assert drawn.low <= drawn.mean <= drawn.high
    assert drawn.label == f"difference −25.00, 95 % interval {interval_text(pairs[0])}, 2 common seeds"
    assert (empty.mean, empty.low, empty.label) == (None, None, "no common seed")
    assert drawn.zero == empty.zero


def test_an_interval_far_wider_than_the_others_is_cut_at_the_scales_end(tmp_path):
    """Seeds that disagree about one variant must not press all others into a point."""

    def dice(*values):
        test = {seed: {"dice": value} for seed, value in enumerate(values)}
        return MadeVariant(test=test, task="segmentation", monitor="val/dice")

    variants = {"a": dice(0.8, 0.81), "b": dice(0.9, 0.92), "c": dice(0.85, 0.88), "wild": dice(0.1, 0.9)}
    pairs = compare(group(tmp_path, variants))
    drawn, (low, high) = interval_plots(pairs)
    widths = [pair.interval[1] - pair.interval[0] for pair in pairs]
    assert [each.cut for each in drawn] == [(), (), ("low", "high")]
    assert pairs[2].interval[0] < low < pairs[2].difference < 0 < high < pairs[2].interval[1]
    assert high - low < widths[2] / 3
    assert (drawn[2].low, drawn[2].high) == (6, 126)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("accuracy", 0.0123, "+1.23"), ("loss", -0.5, "−0.5000"), ("accuracy", -1e-9, "0.00"), ("accuracy", None, "–")],
)
def test_differences_have_a_sign(name, value, text):
    assert signed(value, metric(name)) == text


def test_the_page_and_the_csv_say_it(tmp_path):
    variants = {"a": made(FIRST_WRONG, FIRST_WRONG, title="One"), "b": made(RIGHT, RIGHT, title="Other")}
    write_report(*make_study(tmp_path, variants), tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Each variant against One" in page
    assert 'aria-label="difference +25.00, 95 % interval' in page
    assert "seeds crossed with images" in page
    header, first, second = (tmp_path / "report" / "table.csv").read_text().splitlines()
    columns = header.split(",")
    told = dict(zip(columns, second.split(","), strict=True))
    assert (told["against"], told["difference"], told["only_this_right"]) == ("a", "0.25", "1")
    assert dict(zip(columns, first.split(","), strict=True))["against"] == ""


def test_a_single_variant_is_compared_with_nothing(tmp_path):
    write_report(*make_study(tmp_path, {"a": made(RIGHT)}), tmp_path / "report")
    assert "Each variant against" not in (tmp_path / "report" / "index.html").read_text()


def test_of_all_pairs_those_that_differ_are_counted(tmp_path):
    scores = {"a": (0.5, 0.51, 0.49), "b": (0.505, 0.5, 0.51), "c": (0.9, 0.89, 0.91), "none": ()}
    made_ones = {key: MadeVariant(test=accuracies(*found)) for key, found in scores.items()}
    assert told_apart(group(tmp_path, made_ones)) == (
        "Of 3 pairs of variants 2 (67 %) differ: the 95 % interval of their difference excludes zero. From the "
        "lowest mean to the highest it is 40.0 points."
    )


def test_without_two_seeds_no_pair_can_be_told_apart(tmp_path):
    assert told_apart(group(tmp_path, {"a": MadeVariant(test=accuracies(0.5)), "b": MadeVariant(test={})})) == ""
