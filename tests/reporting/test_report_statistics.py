import math

import numpy as np
import pytest

from convatlas.core.statistics import spread
from convatlas.reporting.statistics import (
    LOOKS,
    MOST_PRIOR_FREEDOM,
    SHARES,
    Prior,
    error_rate,
    estimate,
    fit_prior,
    image_variance,
    not_significantly_worse,
    pareto_front,
    sampling_error,
)


def test_the_deviation_is_the_sample_one():
    found = spread([0.90, 0.92, 0.97])
    # mean 0.93; squares 0.0009 + 0.0001 + 0.0016 = 0.0026, over n - 1 = 2
    assert found.mean == pytest.approx(0.93, abs=1e-12)
    assert found.std == pytest.approx(math.sqrt(0.0013), abs=1e-12)
    assert (found.n, found.low, found.high) == (3, 0.90, 0.97)


def test_a_single_figure_has_no_deviation():
    assert spread([0.9]).std is None


def test_equal_figures_deviate_by_exactly_nothing():
    found = spread([0.1] * 3)
    assert (found.mean, found.std) == (0.1, 0.0)


def test_missing_figures_are_left_out_of_n():
    assert spread([None, 0.5, None, 0.7]).n == 2
    assert spread([None]) is None


def test_a_diverged_seed_is_not_left_out():
    found = spread([0.9, math.nan, 0.9])
    assert math.isnan(found.mean)
    assert found.n == 3


def test_two_standard_errors_of_the_difference_decide_what_is_not_significantly_worse():
    # standard error of the difference: sqrt(0.01^2 / 4 + 0.01^2 / 4) = 0.00707...
    best = spread([0.99, 1.01, 0.99, 1.01])
    assert best.std == pytest.approx(0.0115470, abs=1e-7)
    twice = 2 * math.sqrt(2 * best.std**2 / 4)
    near = spread([value - 0.99 * twice for value in (0.99, 1.01, 0.99, 1.01)])
    far = spread([value - 1.01 * twice for value in (0.99, 1.01, 0.99, 1.01)])
    assert not_significantly_worse(best, near)
    assert not not_significantly_worse(best, far)


def test_a_single_seed_is_never_not_significantly_worse():
    assert not not_significantly_worse(spread([0.9, 0.8]), spread([0.9]))


def test_the_front_holds_what_nothing_beats_in_both():
    points = [(1, 0.5), (2, 0.7), (3, 0.7), (2, 0.6), (4, 0.9), (5, 0.8), (1, 0.5)]
    assert pareto_front(points) == [True, True, False, False, True, False, True]


def test_the_front_is_what_its_definition_says():
    points = [((7 * n) % 11, ((5 * n) % 13) / 13) for n in range(40)]

    def beaten(cost, score):
        return any(c <= cost and s >= score and (c < cost or s > score) for c, s in points)

    assert pareto_front(points) == [not beaten(*point) for point in points]


def test_the_sampling_error_is_binomial():
    assert sampling_error(0.9, 100) == pytest.approx(0.03)


def test_the_interval_is_students():
    mean, reach = 7 / 3, 4.302653 * math.sqrt(7 / 3 / 3)
    assert estimate([1.0, 2.0, 4.0]).interval() == pytest.approx((mean - reach, mean + reach), rel=1e-6)


def test_one_value_has_no_interval_and_equal_ones_have_a_point():
    assert estimate([1.0]).interval() == (-math.inf, math.inf)
    assert estimate([0.5, 0.5, 0.5]).interval() == (0.5, 0.5)


def test_the_variance_of_images_leaves_out_the_chance_of_single_answers():
    """Two seeds, two images: by image 1 and 0, variance 0.5 / 2; the seeds answer alike, so nothing of it is chance."""
    assert image_variance(np.array([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx(0.25)
    assert image_variance(np.array([[1.0, 0.0], [0.0, 1.0]])) == 0
    draws = np.random.default_rng(0)
    found = [image_variance(draws.normal(0, 2, 400) + draws.normal(0, 5, (4, 400))) for _ in range(300)]
    assert np.mean(found) == pytest.approx(4 / 400, rel=0.15)


def test_a_prior_is_worth_as_many_seeds_as_the_variances_are_alike():
    draws = np.random.default_rng(0)
    found = []
    for freedom in (2.0, 5.0):
        true = 0.01**2 * freedom / draws.chisquare(freedom, 3000)
        found.append(fit_prior(true * draws.chisquare(2, 3000) / 2, [2] * 3000))
    assert [prior.freedom for prior in found] == pytest.approx([2, 5], rel=0.2)
    assert [prior.variance for prior in found] == pytest.approx([1e-4, 1e-4], rel=0.1)
    alike = fit_prior([1e-4, 1.1e-4, 0.9e-4, 1e-4], [2] * 4)
    assert alike.freedom == MOST_PRIOR_FREEDOM
    assert fit_prior([1e-4, 1e-4, 1e-4, 0.0], [2] * 4) is None


def test_a_prior_narrows_the_interval_of_few_seeds_and_gives_one_to_equal_scores():
    prior = Prior(0.01**2, 4)
    low, high = estimate([0.01, 0.03, 0.02], prior=prior).interval()
    assert (low, high) == pytest.approx((0.02 - 2.446912 * 0.01 / math.sqrt(3), 0.02 + 2.446912 * 0.01 / math.sqrt(3)))
    low, high = estimate([0.02, 0.02, 0.02], prior=prior).interval()
    assert high - low == pytest.approx(2 * 2.446912 * math.sqrt(4 / 6 * 1e-4 / 3))


def test_a_variance_that_is_not_of_the_priors_kind_stands_alone():
    values = [0.1, 0.5, 0.9]
    assert estimate(values, prior=Prior(0.01**2, 4)) == estimate(values)


def test_the_looks_share_five_percent_and_each_belongs_to_the_next():
    assert 0.04 <= sum(SHARES) <= 0.05
    assert [error_rate(seeds) for seeds in (2, LOOKS[0], LOOKS[0] + 1, LOOKS[1], LOOKS[-1], 50)] == [
        SHARES[0],
        SHARES[0],
        SHARES[1],
        SHARES[1],
        SHARES[-1],
        SHARES[-1],
    ]
