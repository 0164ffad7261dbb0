"""The language of claims: what it reads, what it computes, what it refuses."""

from __future__ import annotations

import pytest

from convatlas.core.errors import UserError
from convatlas.studies.claims import Quantity, read_claim


def test_quantities_are_read_once_each_from_left_to_right():
    claim = read_claim("(error[a.deepest_column] - error[a]) / error[a] <= 0.02 * accuracy[b]", "a study")
    assert claim.quantities() == [
        Quantity("error", "a", "deepest_column"),
        Quantity("error", "a"),
        Quantity("accuracy", "b"),
    ]
    assert not claim.right_is_a_number


def test_a_column_of_the_learning_curves():
    claim = read_claim("history('train/loss', -1)[a] < 1", "a study")
    assert claim.quantities() == [Quantity("history", "a", None, "train/loss", -1)]
    assert claim.right_is_a_number


def test_sides_are_computed_with_pythons_precedence():
    a, b = Quantity("x", "a"), Quantity("x", "b")
    claim = read_claim("x[a] + 2 * x[b] / 4 - -1 >= (x[a] + 2) * x[b]", "a study")
    assert claim.sides({a: 3.0, b: 8.0}) == (8.0, 40.0)


def test_a_division_by_zero_is_infinite():
    a = Quantity("x", "a")
    assert read_claim("1 / x[a] < 2", "a study").sides({a: 0.0}) == (float("inf"), 2.0)


def test_orders_of_magnitude_are_compared_by_logarithms():
    a, b = Quantity("x", "a"), Quantity("x", "b")
    claim = read_claim("log10(x[a] / x[b]) >= 2", "a study")
    assert claim.quantities() == [a, b]
    assert claim.sides({a: 1e-3, b: 1e-6}) == (pytest.approx(3.0), 2.0)
    assert claim.sides({a: 0.0, b: 1.0}) == (float("-inf"), 2.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("error[a]", "one comparison"),
        ("error[a] < error[b] < error[c]", "one comparison"),
        ("error[a] == error[b]", "one comparison"),
        ("1 < 2", "names no variant"),
        ("error < 2", "neither a number nor figure"),
        ("error[a] ** 2 < 1", "neither a number nor figure"),
        ("error['a'] < 1", r"not \[variant\]"),
        ("__import__('os').system('ls')[a] < 1", "not the name of a figure"),
        ("history('train/loss')[a] < 1", "history takes a column and an epoch"),
        ("history('train/loss', 0)[a] < 1", "history takes a column and an epoch"),
        ("error[a] <", "invalid syntax"),
        ("log2(error[a]) < 1", "neither a number nor figure"),
        ("log10(error[a], 2) < 1", "neither a number nor figure"),
    ],
)
def test_what_is_no_claim_is_refused_in_one_sentence(text, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read_claim(text, "conf/study/x.yaml")
    assert str(caught.value).startswith("conf/study/x.yaml: the claim ")
    assert "\n" not in str(caught.value)
