"""The spatial pyramid: its bins, and images of any size through one net."""

import math

import pytest
import torch
import torch.nn.functional as F

from convatlas.models.classification.spp_net import SpatialPyramidPooling, SPPNet
from convatlas.models.costs import on_meta_device

SMALL = {"stem": "small", "width": 0.05, "initialisation": "he", "num_classes": 10, "in_channels": 1}


@pytest.mark.parametrize("size", [(13, 13), (10, 10), (18, 18), (13, 9), (7, 31), (1, 1), (2, 5)])
def test_the_pyramid_gives_12800_values_for_maps_of_any_size(size):
    pooled = SpatialPyramidPooling([6, 3, 2, 1])(torch.randn(2, 256, *size))
    assert pooled.shape == (2, 12800)


def test_13x13_maps_are_pooled_in_the_windows_that_the_paper_writes():
    maps = torch.randn(2, 3, 13, 13)
    levels = []
    for bins in (6, 3, 2, 1):
        window, stride = math.ceil(13 / bins), math.floor(13 / bins)
        levels.append(F.max_pool2d(maps, window, stride).flatten(1))
    assert torch.equal(SpatialPyramidPooling([6, 3, 2, 1])(maps), torch.cat(levels, dim=1))


def test_the_papers_formula_would_give_too_many_bins_for_10x10_maps():
    window, stride = math.ceil(10 / 6), math.floor(10 / 6)
    assert F.max_pool2d(torch.zeros(1, 1, 10, 10), window, stride).shape == (1, 1, 9, 9)
    assert SpatialPyramidPooling([6])(torch.zeros(1, 1, 10, 10)).shape == (1, 36)


@pytest.mark.parametrize("size", [(12, 12), (11, 17)])
def test_every_pixel_of_the_maps_counts_in_every_level(size):
    for level in (6, 3, 2, 1):
        maps = torch.zeros(1, 1, *size)
        for row in range(size[0]):
            for column in range(size[1]):
                maps[0, 0, row, column] = 1.0
                assert SpatialPyramidPooling([level])(maps).max() == 1
                maps[0, 0, row, column] = 0.0


def test_the_last_level_is_the_maximum_of_each_map():
    maps = torch.randn(2, 5, 9, 14)
    assert torch.equal(SpatialPyramidPooling([6, 3, 2, 1])(maps)[:, -5:], maps.amax((2, 3)))


@pytest.mark.parametrize("size", [(224, 224), (180, 180), (300, 170), (31, 500)])
def test_one_net_takes_images_of_any_size_and_shape(size):
    net = on_meta_device(SPPNet)
    assert net(torch.zeros(1, 3, *size, device="meta")).shape == (1, 1000)


def test_224_and_180_pixels_give_the_papers_maps():
    net = on_meta_device(SPPNet)
    sides = [net.forward_features(torch.zeros(1, 3, s, s, device="meta")).shape[-1] for s in (224, 180)]
    assert sides == [13, 10]


def test_a_net_trained_at_one_size_sees_the_same_weights_at_another():
    torch.manual_seed(0)
    net = SPPNet(**SMALL)
    for side in (32, 24):
        net.zero_grad()
        net(torch.randn(2, 1, side, side + 5)).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.fc6.parameters())


@pytest.mark.parametrize(("levels", "inputs"), [([6, 3, 2, 1], 12800), ([4, 3, 2, 1], 7680), ([6], 9216)])
def test_levels_decide_the_inputs_of_the_first_fully_connected_layer(levels, inputs):
    assert on_meta_device(lambda: SPPNet(levels=levels)).fc6.in_features == inputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": []}, r"^model\.levels=\[\] .*\[6, 3, 2, 1\]"),
        ({"levels": [3, 0]}, r"^model\.levels=\[3, 0\]"),
        ({"stem": "large"}, r"^model\.stem=large"),
        ({"initialisation": "zero"}, r"^model\.initialisation=zero"),
        ({"width": 0.0}, r"^model\.width=0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta_device(lambda: SPPNet(**options))


@pytest.mark.parametrize(("stem", "smallest"), [("imagenet", 31), ("small", 4)])
def test_images_below_the_smallest_are_refused_and_the_smallest_is_not(stem, smallest):
    net = on_meta_device(lambda: SPPNet(stem=stem))
    assert net(torch.zeros(1, 3, smallest, smallest, device="meta")).shape == (1, 1000)
    with pytest.raises(ValueError, match=rf"^data\.image_size: .* {smallest}x{smallest} pixels"):
        net(torch.zeros(1, 3, 99, smallest - 1, device="meta"))
