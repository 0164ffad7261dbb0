"""Drop path: what is dropped, how often, and when."""

import pytest
import torch
from torch import nn

from convatlas.models.layers.scheduled_drop_path import ScheduledDropPath, drop_path_figures, set_training_progress


def test_images_are_dropped_whole_and_the_others_scaled_up():
    torch.manual_seed(0)
    x = torch.rand(64, 3, 2, 2) + 1
    out = ScheduledDropPath(0.75)(x)
    kept = out.flatten(1).ne(0).all(1)
    assert torch.equal(kept, out.flatten(1).ne(0).any(1))
    assert 0 < kept.sum() < 64
    assert torch.equal(out[kept], x[kept] / 0.25)


def test_the_rate_grows_with_the_training():
    torch.manual_seed(0)
    x = torch.ones(20_000, 1)
    drop = ScheduledDropPath(0.4)
    for progress in (0.25, 0.5, 1.0):
        set_training_progress(nn.Sequential(drop), progress)
        dropped = drop(x).eq(0).double().mean().item()
        deviation = (0.4 * progress * (1 - 0.4 * progress) / 20_000) ** 0.5
        assert abs(dropped - 0.4 * progress) < 4 * deviation


def test_nothing_is_dropped_at_the_start_or_in_evaluation():
    x = torch.rand(8, 2)
    drop = ScheduledDropPath(0.9)
    assert drop.eval()(x) is x
    set_training_progress(drop.train(), 0.0)
    assert drop(x) is x


def test_figures_are_the_mean_of_the_current_rates_of_what_can_drop():
    net = nn.Sequential(ScheduledDropPath(0.2), ScheduledDropPath(0.4), ScheduledDropPath(0.0))
    assert drop_path_figures(net) == {"drop_path_rate": pytest.approx(0.3)}
    set_training_progress(net, 0.5)
    assert drop_path_figures(net) == {"drop_path_rate": pytest.approx(0.15)}
    assert drop_path_figures(nn.Sequential(ScheduledDropPath(0.0))) == {}
