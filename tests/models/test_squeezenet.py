"""SqueezeNet: the fire module, the metaparameters and the bypass."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from convatlas.models.classification.squeezenet import Fire, SqueezeNet
from convatlas.models.costs import count_parameters, on_meta_device


def test_a_fire_module_is_squeeze_then_both_expansions_side_by_side():
    torch.manual_seed(0)
    fire = Fire(6, 3, 4, 5)
    x = torch.randn(2, 6, 7, 7)
    squeezed = F.relu(F.conv2d(x, fire.squeeze[0].weight, fire.squeeze[0].bias))
    one = F.conv2d(squeezed, fire.expand1x1[0].weight, fire.expand1x1[0].bias)
    three = F.conv2d(squeezed, fire.expand3x3[0].weight, fire.expand3x3[0].bias, padding=1)
    assert torch.equal(fire(x), F.relu(torch.cat((one, three), dim=1)))


def test_the_metaparameters_give_table_1():
    net = on_meta_device(SqueezeNet)
    rows = [(f.squeeze[0].out_channels, f.expand1x1[0].out_channels, f.expand3x3[0].out_channels) for f in net.fires]
    assert rows == [(s, 4 * s, 4 * s) for s in (16, 16, 32, 32, 48, 48, 64, 64)]


def test_the_expand_filters_grow_by_the_increment_every_freq_modules():
    net = on_meta_device(
        lambda: SqueezeNet(base_expand=30, expand_increment=20, modules_per_increment=3, fraction_3x3=0.2)
    )
    filters = [(f.expand1x1[0].out_channels, f.expand3x3[0].out_channels) for f in net.fires]
    assert filters == [(24, 6)] * 3 + [(40, 10)] * 3 + [(56, 14)] * 2


@pytest.mark.parametrize(("image", "sides"), [(224, (109, 54, 27, 13)), (227, (111, 55, 27, 13))])
def test_the_maps_have_figure_2_s_sizes_at_227_pixels(image, sides):
    net = on_meta_device(SqueezeNet).eval()
    seen = []
    net.conv1.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[-1]))
    for fire in (net.fires[0], net.fires[3], net.fires[7]):
        fire.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[-1]))
    net(torch.zeros(1, 3, image, image, device="meta"))
    assert tuple(seen) == sides


def test_vanilla_squeezenet_is_torchvision_s():
    torch.manual_seed(0)
    net = SqueezeNet(num_classes=7).eval()
    other = torchvision.models.squeezenet1_0(weights=None, num_classes=7).eval()
    other.load_state_dict(dict(zip(other.state_dict(), net.state_dict().values(), strict=True)))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(net(images), other(images))


def test_the_simple_bypass_adds_the_input_of_fire_3_5_7_and_9_and_no_parameter():
    torch.manual_seed(0)
    plain, simple = SqueezeNet("none", num_classes=7).eval(), SqueezeNet("simple", num_classes=7).eval()
    simple.load_state_dict(plain.state_dict())
    for index, (without, bypassed) in enumerate(zip(plain.fires, simple.fires, strict=True)):
        x = torch.randn(1, without.squeeze[0].in_channels, 5, 5)
        added = x if index % 2 else torch.tensor(0.0)
        assert torch.equal(bypassed(x), without(x) + added)


def test_the_complex_bypass_adds_a_convolution_where_the_channels_change():
    net = on_meta_device(lambda: SqueezeNet("complex"))
    convolutions = [f.bypass[0] if isinstance(f.bypass, nn.Sequential) else None for f in net.fires]
    around = {i: (c.in_channels, c.out_channels, c.kernel_size) for i, c in enumerate(convolutions) if c is not None}
    one = (1, 1)
    assert around == {0: (96, 128, one), 2: (128, 256, one), 4: (256, 384, one), 6: (384, 512, one)}
    assert all(isinstance(f.bypass, nn.Identity) for f in list(net.fires)[1::2])
    weights = 96 * 128 + 128 * 256 + 256 * 384 + 384 * 512
    biases = 128 + 256 + 384 + 512
    assert count_parameters(net) - count_parameters(on_meta_device(SqueezeNet)) == weights + biases


def test_the_complex_bypass_adds_the_convolved_input():
    torch.manual_seed(0)
    fire = SqueezeNet("complex").fires[2]
    x = torch.randn(1, 128, 5, 5)
    convolved = F.conv2d(x, fire.bypass[0].weight, fire.bypass[0].bias)
    fire.bypass = None
    without = fire(x)
    fire.bypass = nn.Identity()  # any module that returns what stands beside it
    fire.bypass.forward = lambda _x: convolved
    assert torch.equal(fire(x), without + convolved)


@pytest.mark.parametrize("options", [{}, {"stem_kernel": 3, "stem_stride": 1}])
def test_the_smallest_image_is_the_one_that_the_message_names(options):
    net = SqueezeNet(num_classes=7, **options).eval()
    side = net.smallest_image
    assert net(torch.zeros(1, 3, side, side)).shape == (1, 7)
    with pytest.raises(ValueError, match=rf"^data\.image_size: .* takes images from {side}x{side} pixels"):
        net(torch.zeros(1, 3, side - 1, side))


def test_one_pixel_below_the_smallest_image_would_really_fail():
    net = SqueezeNet(num_classes=7).eval()
    side = net.smallest_image - 1
    net.smallest_image = 0
    with pytest.raises(RuntimeError, match="too small"):
        net(torch.zeros(1, 3, side, side))


@pytest.mark.parametrize("rectify", [True, False])
def test_the_logits_are_the_means_of_conv10_s_maps(rectify):
    torch.manual_seed(0)
    net = SqueezeNet(num_classes=7, rectify_logits=rectify).eval()
    images = torch.randn(1, 3, 64, 64)
    maps = F.conv2d(net.forward_features(images), net.conv10.weight, net.conv10.bias)
    assert (maps < 0).any()
    torch.testing.assert_close(net(images), (F.relu(maps) if rectify else maps).mean((2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bypass": "double"}, r"^model\.bypass=double is not known; choose one of none, simple, complex\.$"),
        ({"squeeze_ratio": 0.0}, r"^model\.squeeze_ratio=0\.0 must be above 0 and at most 1\.$"),
        ({"fraction_3x3": 1.0}, r"^model\.fraction_3x3=1\.0 must lie between 0 and 1"),
        ({"base_expand": 1}, r"^model\.base_expand=1 must be at least 2"),
        ({"modules_per_increment": 0}, r"^model\.modules_per_increment=0 must be at least 1\.$"),
    ],
)
def test_squeezenet_says_which_options_fit(options, message):
    with pytest.raises(ValueError, match=message):
        SqueezeNet(**options)
