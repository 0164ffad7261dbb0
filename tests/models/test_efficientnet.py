"""EfficientNet: the compound rule's rounding, and each dimension scaled alone."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.efficientnet import SCALINGS, efficientnet, round_width
from convatlas.models.costs import measure_costs, multiply_adds, on_meta_device


def shapes(net):
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def test_b7_s_widths_and_repeats():
    net = on_meta_device(lambda: efficientnet("b7"))
    stages = [stage[-1].bn3.num_features for stage in list(net.blocks)[1:]]
    first = net.blocks[0][-1].bn2.num_features
    assert [net.conv_stem.out_channels, first, *stages, net.conv_head.out_channels] == [
        *(64, 32, 48, 80, 160, 224, 384, 640),
        2560,
    ]
    assert [len(stage) for stage in net.blocks] == [4, 7, 7, 10, 10, 13, 4]


@pytest.mark.parametrize(
    ("variant", "blocks"), zip(SCALINGS, (16, 23, 23, 26, 32, 39, 45, 55), strict=True), ids=list(SCALINGS)
)
def test_every_variant_has_the_released_number_of_blocks(variant, blocks):
    net = on_meta_device(lambda: efficientnet(variant))
    assert sum(len(stage) for stage in net.blocks) == blocks


@pytest.mark.parametrize("divisor", [4, 8])
def test_rounded_widths_are_the_nearest_multiple_and_never_below_nine_tenths(divisor):
    for channels in (16, 24, 40, 112, 1280):
        for width in (0.1, 0.25, 0.9, 1.0, 1.1, 1.4, 2.0):
            exact, rounded = channels * width, round_width(channels, width, divisor)
            nearest = max(divisor, divisor * math.floor(exact / divisor + 0.5))
            assert rounded % divisor == 0
            assert rounded >= 0.9 * exact
            assert rounded == (nearest if nearest >= 0.9 * exact else nearest + divisor)


def test_depths_are_rounded_up():
    for depth, blocks in ((1.1, [2, 3, 4, 5, 2, 3, 4]), (1.0, [1, 2, 3, 4, 1, 2, 3])):
        net = on_meta_device(lambda d=depth: efficientnet(width=0.1, depth=d, repeats=(1, 2, 3, 4, 1, 2, 3)))
        assert [len(stage) for stage in net.blocks] == blocks


@pytest.mark.parametrize("variant", ["b0", "b3"])
def test_the_net_is_timm_s_port_of_the_released_one(variant):
    torch.manual_seed(0)
    net = efficientnet(variant, num_classes=7).eval()
    other = timm.create_model(f"tf_efficientnet_{variant}", num_classes=7).eval()
    other.load_state_dict(net.state_dict())
    images = torch.randn(1, 3, 65, 65)
    assert torch.equal(net(images), other(images))


def test_width_and_depth_given_alone_override_the_variant_s():
    scaled = on_meta_device(lambda: efficientnet("b0", width=1.2, depth=1.4))
    assert shapes(scaled) == shapes(on_meta_device(lambda: efficientnet("b3")))


# Equation 3 with phi = 1: alpha = 1.2, beta = 1.1 and gamma = 1.15 multiply the cost by alpha, beta^2 and gamma^2. B0
# scaled once shows it badly, because blocks and channels come in whole numbers; at these sizes nothing is rounded.
@pytest.mark.parametrize(
    ("before", "after", "factor"),
    [
        ({"depth": 5.0, "side": 224}, {"depth": 6.0, "side": 224}, 1.2),
        ({"width": 10.0, "side": 224}, {"width": 11.0, "side": 224}, 1.1**2),
        ({"side": 640}, {"side": 736}, 1.15**2),
    ],
    ids=["depth", "width", "resolution"],
)
def test_each_dimension_alone_costs_its_factor(before, after, factor):
    def macs(side, **options):
        return multiply_adds(on_meta_device(lambda: efficientnet(**options)), (3, side, side))[0]

    assert macs(**after) / macs(**before) == pytest.approx(factor, rel=0.01)


def test_the_cost_grows_with_the_square_of_the_resolution():
    net = on_meta_device(efficientnet)
    convolutions = [measure_costs(net, (3, side, side)).macs for side in (64, 128, 256)]
    # What does not depend on the resolution (squeeze-and-excitation, classifier) cancels in differences.
    assert (convolutions[2] - convolutions[1]) == 4 * (convolutions[1] - convolutions[0])


def test_the_squeeze_is_a_quarter_of_a_block_s_input():
    net = on_meta_device(lambda: efficientnet("b4"))
    for block in [block for stage in net.blocks for block in stage]:
        inputs = next(m for m in block.modules() if isinstance(m, nn.Conv2d)).in_channels
        assert block.se.conv_reduce.out_channels == inputs // 4


def test_drop_path_grows_linearly_from_zero():
    net = on_meta_device(lambda: efficientnet(drop_path_rate=0.2))
    blocks = [block for stage in net.blocks for block in stage]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.2 * index / 16 for index in range(16)])


def test_padding_is_tensorflow_s():
    net = efficientnet().eval()
    images = torch.randn(1, 3, 32, 32)
    expected = F.conv2d(F.pad(images, (0, 1, 0, 1)), net.conv_stem.weight, stride=2)
    torch.testing.assert_close(net.conv_stem(images), expected)


def test_the_norms_are_tensorflow_s():
    norms = [m for m in on_meta_device(efficientnet).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "b9"}, r"^model\.variant=b9 is not known; choose one of b0, .*, b7\.$"),
        ({"width": 0.0}, r"^model\.width=0\.0 must be above 0\.$"),
        ({"strides": (1, 2)}, r"^model\.strides=\[1, 2\] must be 7 numbers, each 1 or 2\.$"),
        ({"repeats": (0,) * 7}, r"^model\.repeats=.* must be 7 numbers, each at least 1\.$"),
        ({"dropout": 1.0}, r"^model\.dropout=1\.0 is a probability"),
    ],
)
def test_efficientnet_says_which_options_fit(options, message):
    with pytest.raises(ValueError, match=message):
        efficientnet(**options)
