"""Channel shuffle and both ShuffleNets: which channels see which."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from convatlas.models.classification.shufflenet_v1 import ShuffleNetV1, ShuffleUnit
from convatlas.models.classification.shufflenet_v2 import ShuffleNetV2, shufflenet_v2
from convatlas.models.costs import measure_costs, on_meta_device
from convatlas.models.layers.shuffle import ChannelShuffle, DownsamplingUnit, channel_shuffle
from convatlas.models.layers.shuffle import ShuffleUnit as ShuffleUnitV2


def dependence(function, channels, groups):
    """Return which group of output channels (row) depends on which group of input channels (column)."""
    x = torch.randn(2, channels, 5, 5, requires_grad=True)
    rows = []
    for part in function(x).chunk(groups, dim=1):
        (gradient,) = torch.autograd.grad(part.sum(), x, retain_graph=True)
        rows.append(torch.stack([g.abs().sum() > 0 for g in gradient.chunk(groups, dim=1)]))
    return torch.stack(rows)


@pytest.mark.parametrize(("groups", "each"), [(2, 3), (3, 4), (8, 2), (1, 5)])
def test_shuffle_moves_the_jth_channel_of_group_i_to_j_times_groups_plus_i(groups, each):
    x = torch.arange(groups * each).reshape(1, -1, 1, 1).expand(2, -1, 3, 4)
    shuffled = channel_shuffle(x, groups)
    for i in range(groups):
        for j in range(each):
            assert torch.equal(shuffled[:, j * groups + i], x[:, i * each + j])


def test_shuffling_with_the_other_factor_undoes_it():
    x = torch.randn(2, 12, 3, 3)
    assert torch.equal(channel_shuffle(channel_shuffle(x, 3), 4), x)


def test_channels_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"^groups=4 does not divide the 10 channels"):
        channel_shuffle(torch.zeros(1, 10, 1, 1), 4)


@pytest.mark.parametrize("groups", [2, 3, 4, 8])
def test_shuffled_grouped_convolutions_mix_all_groups_and_unshuffled_ones_none(groups):
    torch.manual_seed(0)
    channels = groups * groups
    grouped = [nn.Conv2d(channels, channels, 1, groups=groups) for _ in range(2)]
    mixed = nn.Sequential(grouped[0], ChannelShuffle(groups), grouped[1])
    apart = nn.Sequential(*grouped)
    assert dependence(mixed, channels, groups).all()
    assert torch.equal(dependence(apart, channels, groups), torch.eye(groups, dtype=torch.bool))


@pytest.mark.parametrize(("groups", "channels"), [(2, 200), (3, 240), (4, 272), (8, 384)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_unit_s_branch_mixes_groups_only_if_it_shuffles(groups, channels, shuffle):
    torch.manual_seed(0)
    unit = ShuffleUnit(channels, channels, groups, stride=1, first_groups=groups, shuffle=shuffle).eval()
    expected = torch.ones(groups, groups) if shuffle else torch.eye(groups)
    assert torch.equal(dependence(unit.branch, channels, groups), expected.bool())


def test_without_shuffle_a_whole_stage_keeps_the_groups_apart():
    torch.manual_seed(0)
    units = {shuffle: ShuffleNetV1(groups=3, shuffle=shuffle).eval().stages[1][1:] for shuffle in (True, False)}
    assert torch.equal(dependence(units[False], 480, 3), torch.eye(3, dtype=torch.bool))
    assert dependence(units[True], 480, 3).all()


def test_the_ablation_has_the_same_weights():
    shapes = [
        {name: value.shape for name, value in on_meta_device(lambda s=s: ShuffleNetV1(shuffle=s)).state_dict().items()}
        for s in (True, False)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_unit_is_figure_2(stride):
    torch.manual_seed(0)
    out_channels = 24 if stride == 1 else 72
    unit = ShuffleUnit(24, out_channels, 3, stride=stride, first_groups=3, shuffle=True).eval()
    x = torch.randn(2, 24, 8, 8)
    branch = F.relu(unit.bn1(F.conv2d(x, unit.reduce.weight, groups=3)))
    branch = channel_shuffle(branch, 3)
    branch = unit.bn2(unit.depthwise(branch))  # no activation between depthwise and pointwise convolution
    branch = unit.bn3(F.conv2d(branch, unit.expand.weight, groups=3))
    pooled = F.avg_pool2d(x, 3, stride=2, padding=1)
    expected = F.relu(x + branch if stride == 1 else torch.cat((pooled, branch), dim=1))
    torch.testing.assert_close(unit(x), expected)
    assert unit.depthwise.groups == unit.depthwise.in_channels == out_channels // 4


@pytest.mark.parametrize(("groups", "stage2"), [(1, 144), (2, 200), (3, 240), (4, 272), (8, 384)])
def test_the_stages_have_table_1_s_channels(groups, stage2):
    net = on_meta_device(lambda: ShuffleNetV1(groups=groups)).eval()
    sizes = []
    for stage in net.stages:
        stage.register_forward_hook(lambda _stage, _inputs, output: sizes.append(tuple(output.shape[1:])))
    net(torch.zeros(1, 3, 224, 224, device="meta"))
    assert sizes == [(stage2, 28, 28), (2 * stage2, 14, 14), (4 * stage2, 7, 7)]


def test_only_the_first_convolution_of_stage_2_is_not_grouped():
    net = on_meta_device(lambda: ShuffleNetV1(groups=3))
    groups = [[unit.reduce.groups for unit in stage] for stage in net.stages]
    assert groups == [[1, 3, 3, 3], [3] * 8, [3] * 4]
    assert {unit.expand.groups for stage in net.stages for unit in stage} == {3}


# The table of the nets that the authors released: millions of multiply-adds and of parameters.
@pytest.mark.parametrize(
    ("width", "groups", "macs", "parameters"),
    [
        (2.0, 3, 524, 5.4),
        (2.0, 8, 522, 6.5),
        (1.5, 3, 292, 3.4),
        (1.5, 8, 290, 4.3),
        (1.0, 8, 138, 2.4),
        (0.5, 3, 38, 0.7),
        (0.5, 8, 40, 1.0),
    ],
)
def test_the_released_nets_cost_what_their_table_prints(width, groups, macs, parameters):
    net = on_meta_device(lambda: ShuffleNetV1(width, groups))
    costs = measure_costs(net, (3, 224, 224))
    assert net.classifier.bias is None
    assert round(costs.macs / 1e6) == macs
    assert round(costs.parameters / 1e6, 1) == parameters


@pytest.mark.parametrize(("width", "groups", "macs"), [(0.5, 2, 38), (0.5, 4, 38), (0.25, 2, 11), (0.25, 4, 12)])
def test_bottlenecks_that_do_not_divide_are_rounded_to_the_groups(width, groups, macs):
    net = on_meta_device(lambda: ShuffleNetV1(width, groups))
    for unit in [unit for stage in net.stages for unit in stage]:
        quarter = (unit.expand.out_channels + (unit.reduce.in_channels if unit.stride == 2 else 0)) / 4
        assert unit.reduce.out_channels % groups == 0
        assert abs(unit.reduce.out_channels - quarter) <= groups / 2
    assert measure_costs(net, (3, 224, 224)).macs == pytest.approx(macs * 1e6, rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 5}, r"^model\.groups=5: .* 1, 2, 3, 4 and 8 groups only\.$"),
        ({"width": 0}, r"^model\.width=0 must be above 0"),
        ({"repeats": (1, 1)}, r"^model\.repeats=\[1, 1\] must be 3 numbers"),
        ({"stem": "none"}, r"^model\.stem=none is not known; choose one of imagenet, small\.$"),
    ],
)
def test_shufflenet_v1_says_which_options_fit(options, message):
    with pytest.raises(ValueError, match=message):
        ShuffleNetV1(**options)


def test_a_unit_of_v2_leaves_half_of_the_channels_untouched_and_shuffles():
    torch.manual_seed(0)
    unit = ShuffleUnitV2(12).eval()
    x = torch.randn(2, 12, 5, 5)
    out = unit(x)
    assert torch.equal(out[:, 0::2], x[:, :6])
    assert torch.equal(out[:, 1::2], unit.branch(x[:, 6:]))


def test_the_downsampling_unit_keeps_the_input_s_channels_in_its_short_branch():
    unit = DownsamplingUnit(24, 116).eval()
    x = torch.randn(1, 24, 8, 8)
    assert unit.short(x).shape == (1, 24, 4, 4)
    assert unit.long(x).shape == (1, 92, 4, 4)
    assert torch.equal(unit(x), channel_shuffle(torch.cat((unit.short(x), unit.long(x)), dim=1), 2))


def test_v2_at_half_width_is_torchvision_s_without_the_last_bias():
    # At this width both branches of the first downsampling unit have 24 channels, as torchvision has them in all nets.
    torch.manual_seed(0)
    net = shufflenet_v2(0.5, num_classes=7).eval()
    other = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=7).eval()
    nn.init.zeros_(other.fc.bias)
    names = [name for name in other.state_dict() if name != "fc.bias"]
    other.load_state_dict(dict(zip(names, net.state_dict().values(), strict=True)), strict=False)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(net(images), other(images))


def test_v2_at_1_5_costs_what_table_5_prints():
    costs = measure_costs(on_meta_device(lambda: shufflenet_v2(1.5)), (3, 224, 224))
    assert round(costs.macs / 1e6) == 299
    assert round(costs.parameters / 1e6, 1) == 3.5


def test_v2_says_which_widths_there_are():
    with pytest.raises(ValueError, match=r"^model\.width=0\.75: .* 0\.5, 1\.0, 1\.5 and 2\.0"):
        shufflenet_v2(0.75)


@pytest.mark.parametrize("channels", [(16, 32), (15, 32, 64), (48, 40, 64)])
def test_v2_says_which_stage_channels_fit(channels):
    with pytest.raises(ValueError, match=r"^model\.stage_channels=.* must be three even numbers that grow from"):
        ShuffleNetV2(channels)
