"""Compound scaling: the grid, the constraint, equal costs."""

from __future__ import annotations

import pytest
import torch

from convatlas.models.build import build_model
from convatlas.search.budget import macs_of
from convatlas.search.driver import STRATEGIES
from convatlas.search.scaling import Coefficients, grid

TARGET = "convatlas.models.classification.efficientnet.efficientnet"


def test_the_documented_grid_has_108_candidates_and_the_paper_s_is_one_of_them():
    found = grid(0.05, 0.1)
    assert len(found) == 108
    assert Coefficients(1.2, 1.1, 1.15) in found
    assert all(abs(each.alpha * each.beta**2 * each.gamma**2 - 2) < 0.1 for each in found)


def test_the_paper_s_coefficients_cost_1_92():
    assert Coefficients(1.2, 1.1, 1.15).cost == pytest.approx(1.920, abs=5e-4)


def test_each_dimension_alone_costs_what_the_rule_says():
    """Of a baseline that needs little rounding: five times the blocks, any width, and 256 for 257.6 pixels."""
    baseline = {"_target_": TARGET, "variant": "b0", "repeats": [5] * 7, "divisor": 2}

    def macs(side, **more):
        with torch.device("meta"):
            return macs_of(build_model({**baseline, **more}), torch.zeros(1, 3, side, side))

    once = macs(224)
    assert macs(224, depth=1.2) / once == pytest.approx(1.2, abs=0.03)
    assert macs(224, width=1.1) / once == pytest.approx(1.21, abs=0.03)
    assert macs(256) / once == pytest.approx(1.32, abs=0.03)


def test_nets_that_are_compared_cost_the_same(context):
    found = STRATEGIES["compound_scaling"](context("compound_scaling", "data.image_size=32"))
    found.best = (1.0, (0,))
    nets = found.architectures()
    assert list(nets) == [
        "compound", "baseline", "depth_only", "width_only", "resolution_only", "random_coefficients"
    ]  # fmt: skip
    macs = {
        name: found._macs(Coefficients(**{k: v for k, v in net["found"].items() if k != "train_with"}))
        for name, net in nets.items()
    }
    assert 1.5 < macs["compound"] / macs["baseline"] < 2.8
    for name in ("depth_only", "width_only", "resolution_only"):
        assert macs[name] / macs["compound"] == pytest.approx(1, abs=0.15)
    assert nets["resolution_only"]["image_size"] >= nets["compound"]["image_size"] >= 32
    assert nets["width_only"]["image_size"] == nets["depth_only"]["image_size"] == 32


def test_coefficients_that_make_the_same_net_are_trained_once(context):
    found = STRATEGIES["compound_scaling"](context("compound_scaling", "search.strategy.step=0.25"))
    shapes = [found._shape(each) for each in found.candidates]
    assert len(set(shapes)) == len(shapes)
    assert {found._shape(each) for each in grid(0.25, 0.3)} == set(shapes)
