"""The untrained normalisations against their papers' formulas."""

import pytest
import torch
from torch import Tensor, nn

from convatlas.models.layers.normalisation import LocalContrastNorm, LocalResponseNorm, WithinChannelResponseNorm


def by_the_papers_formula(x: Tensor, n: int, k: float, alpha: float, beta: float) -> Tensor:
    """Sum the squares of maps max(0, i - n/2) to min(N - 1, i + n/2), one map at a time."""
    maps = x.shape[1]
    result = torch.empty_like(x)
    for i in range(maps):
        neighbours = x[:, max(0, i - n // 2) : min(maps - 1, i + n // 2) + 1]
        result[:, i] = x[:, i] / (k + alpha * (neighbours**2).sum(1)) ** beta
    return result


@pytest.mark.parametrize(("maps", "n", "alpha"), [(7, 5, 1e-4), (7, 5, 0.3), (3, 5, 0.3), (9, 3, 0.3), (1, 5, 0.3)])
def test_response_normalisation_is_the_papers_formula(maps, n, alpha):
    x = 10 * torch.randn(2, maps, 3, 4, dtype=torch.double)
    layer = LocalResponseNorm(size=n, alpha=alpha, beta=0.75, k=2.0)
    torch.testing.assert_close(layer(x), by_the_papers_formula(x, n, 2.0, alpha, 0.75))


def test_defaults_are_alexnets_and_torch_needs_five_times_the_alpha_for_the_same():
    x = 30 * torch.randn(2, 8, 3, 3, dtype=torch.double)
    ours = LocalResponseNorm()(x)
    torch.testing.assert_close(ours, nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)(x))
    trap = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)(x)
    assert (ours - trap).abs().max() > 0.1


def test_within_channel_normalisation_averages_nine_pixels_with_zeros_beyond_the_border():
    x = torch.zeros(1, 2, 3, 3)
    x[0, 0, 1, 1] = 3.0
    x[0, 0, 0, 0] = 1.0
    normalised = WithinChannelResponseNorm(size=3, alpha=2.0, beta=0.5)(x)
    divisor = (1 + 2.0 * (3.0**2 + 1.0) / 9) ** 0.5
    assert normalised[0, 0, 1, 1].item() == pytest.approx(3.0 / divisor)
    assert normalised[0, 0, 0, 0].item() == pytest.approx(1.0 / divisor)
    assert (normalised[0, 1] == 0).all()


def test_contrast_normalisation_takes_out_brightness_and_contrast():
    x = torch.randn(2, 3, 20, 20, dtype=torch.double)
    layer = LocalContrastNorm().double()
    torch.testing.assert_close(layer(5 * x + 7), layer(x), rtol=1e-4, atol=1e-4)


def test_contrast_normalisation_is_the_papers_formula_away_from_the_border():
    x = torch.randn(1, 3, 21, 21, dtype=torch.double)
    layer = LocalContrastNorm().double()
    weights = layer.window[0, 0] / layer.window.sum() / 3
    around = [[x[0, :, r - 4 : r + 5, c - 4 : c + 5] for c in range(4, 17)] for r in range(4, 17)]
    means = torch.tensor([[(weights * patch).sum() for patch in row] for row in around], dtype=torch.double)
    v = x[0, :, 4:17, 4:17] - means
    sigma = (weights * v[:, 2:11, 2:11] ** 2).sum().sqrt()
    centred = x - layer._local_mean(x)
    deviations = layer._local_mean(centred**2).sqrt()
    expected = v[:, 6, 6] / max(sigma, deviations.mean())
    torch.testing.assert_close(layer(x)[0, :, 10, 10], expected, rtol=1e-6, atol=1e-6)


def test_an_image_without_contrast_becomes_zero():
    flat = torch.full((1, 2, 12, 12), 3.0, dtype=torch.double)
    assert LocalContrastNorm().double()(flat).abs().max() < 1e-9


@pytest.mark.parametrize("layer", [LocalResponseNorm(), WithinChannelResponseNorm(), LocalContrastNorm()])
def test_nothing_is_trained_or_saved(layer):
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}
