"""MobileNet V1 to V3 and MnasNet: what a separable layer costs, and which net each options make."""

from fractions import Fraction

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.mnasnet import mnasnet_a1
from convatlas.models.classification.mobilenet_v1 import ConvMobileNet, DepthwiseSeparable, MobileNetV1
from convatlas.models.classification.mobilenet_v2 import mobilenet_v2
from convatlas.models.classification.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from convatlas.models.costs import measure_costs, on_meta_device
from convatlas.models.layers.conv_norm import ConvNormAct


def costs(layer, input_size):
    """Return weights of the convolutions and multiply-adds of a layer, the norms left out."""
    weights = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Conv2d))
    return weights, measure_costs(layer, input_size).macs


def separable(channels_in, channels_out, stride=1):
    return on_meta_device(lambda: DepthwiseSeparable(channels_in, channels_out, stride))


def full(channels_in, channels_out, stride=1):
    return on_meta_device(lambda: ConvNormAct(channels_in, channels_out, 3, stride))


def same_weights(net, other):
    """Give `other` the weights of `net`, taken in order, with running statistics that are not the start's."""
    generator = torch.Generator().manual_seed(0)
    state = net.state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_(generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2.0, generator=generator)
    other.load_state_dict(dict(zip(other.state_dict(), state.values(), strict=True)))


def set_eps(net, eps):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps


@pytest.mark.parametrize("shape", [(8, 16, 12), (512, 512, 14), (64, 40, 7)])
def test_a_separable_layer_costs_one_over_out_plus_one_ninth_of_a_convolution(shape):
    channels_in, channels_out, side = shape
    size = (channels_in, side, side)
    weights, macs = costs(separable(channels_in, channels_out), size)
    full_weights, full_macs = costs(full(channels_in, channels_out), size)
    ratio = Fraction(1, channels_out) + Fraction(1, 9)
    assert Fraction(weights, full_weights) == ratio
    assert Fraction(macs, full_macs) == ratio


# Table 3 of the paper, as the lecture prints it: millions of multiply-adds and of parameters of one inner layer.
@pytest.mark.parametrize(
    ("layer", "channels", "side", "millions"),
    [
        (full, 512, 14, (462, 2.36)),
        (separable, 512, 14, (52.3, 0.27)),
        (separable, 384, 14, (29.6, 0.15)),
        (separable, 384, 10, (15.1, 0.15)),
    ],
    ids=["convolution", "separable", "alpha 0.75", "rho 0.714"],
)
def test_the_inner_layer_costs_what_the_lecture_prints(layer, channels, side, millions):
    weights, macs = costs(layer(channels, channels), (channels, side, side))
    assert weights == (9 * channels**2 if layer is full else 9 * channels + channels**2)
    assert macs == side**2 * weights
    assert float(f"{macs / 1e6:.3g}") == millions[0]
    assert round(weights / 1e6, 2) == millions[1]


@pytest.mark.parametrize("net_class", [MobileNetV1, ConvMobileNet])
@pytest.mark.parametrize(("width", "image", "channels", "side"), [(1.0, 224, 512, 14), (0.75, 160, 384, 10)])
def test_both_nets_have_five_of_these_inner_layers(net_class, width, image, channels, side):
    net = on_meta_device(lambda: net_class(width=width)).eval()
    shapes = []
    for layer in net.stages[3]:
        layer.register_forward_hook(lambda _layer, inputs, output: shapes.append((inputs[0].shape, output.shape)))
    net(torch.zeros(1, 3, image, image, device="meta"))
    assert shapes[1:] == [((1, channels, side, side),) * 2] * 5


def test_the_width_multiplier_thins_every_layer():
    net = on_meta_device(lambda: MobileNetV1(width=0.25))
    assert [stage[0].pointwise.out_channels for stage in net.stages] == [16, 32, 64, 128, 256]


def test_mobilenet_with_relu6_is_timm_s():
    net = MobileNetV1(activation="relu6", num_classes=7).eval()
    other = timm.create_model("mobilenetv1_100", num_classes=7).eval()
    same_weights(net, other)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(net(images), other(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"^model\.width=0 must be above 0"),
        ({"strides": (2, 2)}, r"^model\.strides=\[2, 2\] must be 5 numbers, each 1 or 2\.$"),
        ({"middle_layers": -1}, r"^model\.middle_layers=-1 must be 0 or more"),
        ({"activation": "gelu"}, r"^model\.activation=gelu is not known; choose one of relu, relu6\.$"),
    ],
)
def test_mobilenet_v1_says_which_options_fit(options, message):
    with pytest.raises(ValueError, match=message):
        MobileNetV1(**options)


@pytest.mark.parametrize(("width", "name"), [(0.5, "mobilenetv2_050"), (1.4, "mobilenetv2_140")])
def test_mobilenet_v2_is_timm_s(width, name):
    net = mobilenet_v2(width, num_classes=7).eval()
    other = timm.create_model(name, num_classes=7).eval()
    same_weights(net, other)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(net(images), other(images))


def test_mobilenet_v2_s_bottlenecks_are_linear():
    net = mobilenet_v2().eval()
    lowest = []
    for block in net.blocks.children():
        block[-1].register_forward_hook(lambda _block, _inputs, output: lowest.append(output.min().item()))
    net(torch.randn(1, 3, 64, 64))
    assert len(lowest) == 7
    assert max(lowest) < 0


# Tables 1 and 2: kernel, expanded channels, output channels, squeeze-and-excitation, h-swish, stride.
LARGE = [
    *((3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1)),
    *((5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1)),
    *((3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1)),
    *((3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1)),
    *((5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1)),
]
SMALL = [
    *((3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1)),
    *((5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1)),
    *((5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1)),
    *((5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1)),
]


@pytest.mark.parametrize(("build", "table"), [(mobilenet_v3_large, LARGE), (mobilenet_v3_small, SMALL)])
def test_mobilenet_v3_has_the_paper_s_rows(build, table):
    net = on_meta_device(build)
    rows = []
    for block in [block for stage in net.blocks for block in stage][:-1]:
        convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        depthwise = next(c for c in convolutions if c.groups > 1)
        rows.append(
            (
                depthwise.kernel_size[0],
                depthwise.in_channels,
                convolutions[-1].out_channels,
                int(not isinstance(block.se, nn.Identity)),
                int(any(isinstance(m, nn.Hardswish) for m in block.modules())),
                depthwise.stride[0],
            )
        )
    assert rows == table


@pytest.mark.parametrize("build", [mobilenet_v3_large, mobilenet_v3_small])
def test_mobilenet_v3_squeezes_to_a_quarter_of_the_expanded_channels(build):
    net = on_meta_device(build)
    squeezes = [module for name, module in net.named_modules() if name.endswith(".se") and hasattr(module, "gate")]
    assert squeezes
    for se in squeezes:
        # rounded to a multiple of 8, never below 90 %
        assert se.conv_reduce.out_channels % 8 == 0
        assert abs(se.conv_reduce.out_channels - se.conv_reduce.in_channels / 4) <= 6
        assert se.conv_reduce.out_channels >= 0.9 * se.conv_reduce.in_channels / 4


def test_h_swish_is_the_paper_s():
    x = torch.linspace(-5, 5, 101)
    activations = [m for m in mobilenet_v3_small().modules() if isinstance(m, nn.Hardswish)]
    torch.testing.assert_close(activations[0](x.clone()), x * F.relu6(x + 3) / 6)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (mobilenet_v3_large, "mobilenetv3_large_100"),
        (mobilenet_v3_small, "mobilenetv3_small_100"),
        (mnasnet_a1, "semnasnet_100"),
    ],
)
def test_the_searched_nets_are_timm_s_with_the_paper_s_norms(build, name):
    net = build(num_classes=7).eval()
    other = timm.create_model(name, num_classes=7).eval()
    set_eps(other, 1e-3)
    same_weights(net, other)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(net(images), other(images))
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}


@pytest.mark.parametrize("build", [mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small, mnasnet_a1])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": -1.0}, r"^model\.width=-1\.0 must be above 0"),
        ({"strides": (3,)}, r"^model\.strides=\[3\] must be \d numbers, each 1 or 2\.$"),
        ({"head_channels": 0}, r"^model\.head_channels=0 must be at least 1\.$"),
    ],
)
def test_the_nets_of_timm_s_blocks_say_which_options_fit(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
