"""SNet: costs, wide depthwise filters, both branches' halves, the maps that a detector takes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.snet import VARIANTS, SNet, snet
from convatlas.models.costs import measure_costs, on_meta_device
from convatlas.models.layers.shuffle import DownsamplingUnit, ShuffleUnit


@pytest.mark.parametrize(
    ("variant", "macs", "parameters"),
    [("49", 51_205_832, 875_548), ("146", 161_137_848, 1_572_748), ("535", 535_354_640, 4_535_144)],
)
def test_costs_at_224(variant, macs, parameters):
    costs = measure_costs(on_meta_device(lambda: snet(variant)), (3, 224, 224))
    assert costs.macs == macs
    assert costs.parameters == parameters


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_depthwise_filter_is_5x5_and_there_are_16_units(variant):
    net = on_meta_device(lambda: snet(variant))
    depthwise = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert {m.kernel_size for m in depthwise} == {(5, 5)}
    assert len(depthwise) == 16 + 3  # a unit of stride 2 has two


@pytest.mark.parametrize(("variant", "channels"), [("49", (120, 512)), ("146", (264, 528)), ("535", (496, 992))])
def test_a_detector_takes_the_ends_of_stage_3_and_of_all(variant, channels):
    net = on_meta_device(lambda: snet(variant)).eval()
    seen = []
    net.stages[1].register_forward_hook(lambda _stage, _inputs, output: seen.append(output))
    c4, c5 = net.forward_maps(torch.zeros(1, 3, 320, 320, device="meta"))
    assert c4 is seen[0]
    assert (tuple(c4.shape[1:]), tuple(c5.shape[1:])) == ((channels[0], 20, 20), (channels[1], 10, 10))
    assert net.map_channels == channels
    assert net.map_strides == (16, 32)


def test_only_snet49_has_conv5():
    assert [isinstance(on_meta_device(lambda v=v: snet(v)).conv5, nn.Identity) for v in VARIANTS] == [False, True, True]


@pytest.mark.parametrize(("stride", "strides"), [(4, (16, 32)), (2, (8, 16)), (1, (4, 8))])
def test_the_stem_s_stride_decides_the_maps_strides(stride, strides):
    net = on_meta_device(lambda: SNet((4, 8, 16), None, stem_channels=4, stem_stride=stride, repeats=(1, 1, 1))).eval()
    maps = net.forward_maps(torch.zeros(1, 3, 64, 64, device="meta"))
    assert [64 // m.shape[-1] for m in maps] == list(strides) == list(net.map_strides)


def test_a_unit_of_stride_1_by_hand():
    torch.manual_seed(0)
    unit = ShuffleUnit(8, kernel=5).eval()
    x = torch.randn(2, 8, 6, 6)
    first, depthwise, last = unit.branch
    y = F.relu(first[1](F.conv2d(x[:, 4:], first[0].weight)))
    y = depthwise[1](F.conv2d(y, depthwise[0].weight, padding=2, groups=4))  # no activation here
    y = F.relu(last[1](F.conv2d(y, last[0].weight)))
    out = unit(x)
    assert torch.equal(out[:, 0::2], x[:, :4])
    torch.testing.assert_close(out[:, 1::2], y)


def test_each_branch_of_a_unit_of_stride_2_gives_every_second_channel():
    torch.manual_seed(0)
    unit = DownsamplingUnit(6, 20, kernel=5, equal=True).eval()
    x = torch.randn(1, 6, 8, 8)
    out = unit(x)
    assert out.shape == (1, 20, 4, 4)
    assert torch.equal(out[:, 0::2], unit.short(x))
    assert torch.equal(out[:, 1::2], unit.long(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage_channels": (60, 121, 240)}, r"^model\.stage_channels=\[60, 121, 240\] must be three even numbers"),
        ({"repeats": (4, 0, 4)}, r"^model\.repeats=\[4, 0, 4\] must be 3 numbers"),
        ({"stem_stride": 3}, r"^model\.stem_stride=3 must be 1, 2 or 4"),
        ({"stem_channels": 0}, r"^model\.stem_channels=0 must be at least 1"),
        ({"last_channels": 0}, r"^model\.last_channels=0 must be at least 1"),
    ],
)
def test_wrong_widths_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SNet(**options)


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match=r"^model\.variant=147 is not known; choose one of 49, 146, 535\.$"):
        snet(147)
