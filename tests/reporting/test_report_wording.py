import math

import pytest

from convatlas.core.metrics import metric
from convatlas.core.statistics import spread
from convatlas.reporting.wording import duration, listed, spread_text, with_prefix


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (64.0, "64"),
        (2.5, "2.50"),
        (999.6, "1.00 k"),
        (61_706, "61.7 k"),
        (272_474, "272 k"),
        (999_900, "1.00 M"),
        (25_557_032, "25.6 M"),
        (4.089e9, "4.09 G"),
        (None, "–"),
    ],
)
def test_three_digits_and_a_prefix(value, text):
    assert with_prefix(value).replace("\u202f", " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00321, "3.21 ms"),
        (0.5, "500 ms"),
        (1, "1.00 s"),
        (45.24, "45.2 s"),
        (99.96, "1 min 40 s"),
        (725, "12 min 5 s"),
        (74_520, "20 h 42 min"),
        (7_199, "2 h 0 min"),
    ],
)
def test_a_duration_reads_in_two_units(seconds, text):
    assert duration(seconds).replace("\u202f", " ") == text


def test_a_share_is_written_in_percent_with_its_standard_deviation():
    assert spread_text(metric("accuracy"), spread([0.98, 0.99])) == "98.50 ± 0.71\u202f%"


def test_a_single_seed_is_written_without_one():
    assert spread_text(metric("accuracy"), spread([0.98])) == "98.00\u202f%"


def test_a_loss_is_no_share():
    assert spread_text(metric("loss"), spread([0.25])) == "0.2500"


def test_a_diverged_figure_says_so():
    assert spread_text(metric("loss"), spread([math.nan, 0.5])) == "not finite"


def test_a_list_is_one_phrase():
    assert [listed([]), listed(["a"]), listed(["a", "b", "c"])] == ["", "a", "a, b and c"]
