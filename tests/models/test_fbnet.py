"""FBNet: the found layers, the block, and the two ways to read an expansion of 1."""

import pytest
import timm
import torch
from torch import nn

from convatlas.models.classification.fbnet import BLOCKS, FOUND, STAGE_CHANNELS, BlockKind, FBNet, FBNetBlock
from convatlas.models.costs import measure_costs, on_meta_device


def convolutions(module):
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("variant", FOUND)
def test_22_layers_were_searched(variant):
    assert [len(stage) for stage in FOUND[variant]] == [1, 4, 4, 4, 4, 4, 1]
    assert {name for stage in FOUND[variant] for name in stage} <= {"skip", *BLOCKS}


@pytest.mark.parametrize("variant", FOUND)
def test_the_net_has_the_layers_of_the_table(variant):
    net = on_meta_device(lambda: FBNet(variant))
    for names, stage, channels in zip(FOUND[variant], net.stages, STAGE_CHANNELS, strict=True):
        kept = [BLOCKS[name] for name in names if name != "skip"]
        assert len(stage) == len(kept)
        for kind, block in zip(kept, stage, strict=True):
            *expand, depthwise, project = convolutions(block)
            in_channels = convolutions(block)[0].in_channels
            assert len(expand) == int(kind.expansion > 1)
            assert depthwise.kernel_size == (kind.kernel, kind.kernel)
            assert depthwise.groups == depthwise.in_channels == kind.expansion * in_channels
            assert (project.groups, project.out_channels) == (kind.groups, channels)


# Millions of parameters and multiply-adds, counted from the layer list: without and with the first 1x1 convolution of
# blocks with expansion 1, both without biases.
@pytest.mark.parametrize(
    ("variant", "always_expand", "parameters", "macs"),
    [
        ("a", False, 4.305, 244.5),
        ("b", False, 4.801, 291.0),
        ("c", False, 5.571, 378.1),
        ("a", True, 4.321, 249.9),
        ("b", True, 4.863, 306.2),
        ("c", True, 5.572, 385.0),
    ],
)
def test_both_readings_of_expansion_1_have_their_costs(variant, always_expand, parameters, macs):
    net = on_meta_device(lambda: FBNet(variant, always_expand=always_expand, conv_bias=False))
    costs = measure_costs(net, (3, 224, 224))
    assert round(costs.parameters / 1e6, 3) == parameters
    assert round(costs.macs / 1e6, 1) == macs


@pytest.mark.parametrize("variant", FOUND)
def test_the_released_nets_have_a_bias_for_every_filter(variant):
    with_biases = on_meta_device(lambda: FBNet(variant))
    without = on_meta_device(lambda: FBNet(variant, conv_bias=False))
    filters = sum(c.out_channels for c in convolutions(without))
    biases = measure_costs(with_biases, (3, 64, 64)).parameters - measure_costs(without, (3, 64, 64)).parameters
    assert biases == filters


def test_batch_norm_takes_the_biases_effect_away():
    torch.manual_seed(0)
    net = FBNet("a", width=0.25, dropout=0.0, num_classes=7).double()
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    before = net(images)
    for convolution in convolutions(net):
        nn.init.normal_(convolution.bias)
    torch.testing.assert_close(net(images), before)


def test_fbnet_c_with_expansion_convolutions_is_timm_s():
    torch.manual_seed(0)
    net = FBNet("c", always_expand=True, conv_bias=False, num_classes=7).eval()
    other = timm.create_model("fbnetc_100", num_classes=7).eval()
    eps = {m.eps for m in other.modules() if isinstance(m, nn.BatchNorm2d)}.pop()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    other.load_state_dict(dict(zip(other.state_dict(), net.state_dict().values(), strict=True)))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(net(images), other(images))


@pytest.mark.parametrize("always_expand", [True, False])
def test_grouped_blocks_mix_both_groups(always_expand):
    torch.manual_seed(0)
    block = FBNetBlock(8, 12, BlockKind(3, 1, groups=2), always_expand=always_expand).eval()
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    for group in block(x).chunk(2, dim=1):
        (gradient,) = torch.autograd.grad(group.sum(), x, retain_graph=True)
        assert all(part.abs().sum() > 0 for part in gradient.chunk(2, dim=1))


@pytest.mark.parametrize(("out_channels", "stride", "residual"), [(8, 1, True), (12, 1, False), (8, 2, False)])
def test_the_input_is_added_where_the_shape_stays(out_channels, stride, residual):
    torch.manual_seed(0)
    block = FBNetBlock(8, out_channels, BLOCKS["k5_e3"], stride=stride).eval()
    x = torch.randn(2, 8, 6, 6)
    branch = block.layers(x)
    assert torch.equal(block(x), x + branch if residual else branch)


def test_the_last_convolution_of_a_block_is_linear():
    torch.manual_seed(0)
    block = FBNetBlock(8, 12, BLOCKS["k3_e6"]).eval()
    assert block(torch.randn(2, 8, 6, 6)).min() < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "d"}, r"^model\.variant=d is not known; choose one of a, b, c\.$"),
        ({"width": 0}, r"^model\.width=0 must be above 0\.$"),
        ({"strides": (2, 2)}, r"^model\.strides=\[2, 2\] must be 8 numbers, each 1 or 2\.$"),
        ({"variant": "a", "strides": (1, 2, 2, 2, 2, 1, 2, 1)}, r"^model\.strides=.* variant a skips a layer"),
    ],
)
def test_fbnet_says_which_options_fit(options, message):
    with pytest.raises(ValueError, match=message):
        FBNet(**options)
