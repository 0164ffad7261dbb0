"""i-RevNet: the inverse, the two forms, the memory-saving backward pass, pictures of reconstructions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.irevnet import IRevNet
from convatlas.models.costs import activation_bytes, count_parameters, on_meta_device
from convatlas.models.interfaces import Invertible
from convatlas.models.layers.reversible import space_to_depth
from convatlas.tasks.reconstruction import interpolate, interpolation_figure, reconstruct, reconstruction_figure

CIFAR = {"blocks": [18, 18, 18], "channels": [16, 64, 256], "strides": [1, 2, 2], "initial_downsampling": 1}


def bijective(**options):
    torch.manual_seed(0)
    return IRevNet(**{"blocks": [2, 2, 2], "strides": [1, 2, 2], "block": "released", "num_classes": 10} | options)


def injective(**options):
    torch.manual_seed(0)
    return IRevNet(**CIFAR | {"blocks": [2, 2, 2], "block": "released", "num_classes": 10} | options)


def images(batch=4, size=16, channels=3):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("block", "parameters"), [("paper", 29_201_092), ("released", 125_120_356)])
def test_the_bijective_net_has_the_paper_s_and_the_released_parameters(block, parameters):
    net = on_meta_device(lambda: IRevNet(block=block))
    assert count_parameters(net) == parameters
    assert (net.features, net.total_stride) == (3072, 32)  # 224 pixels become 7


@pytest.mark.parametrize(("classes", "parameters"), [(10, 6_274_826), (100, 6_320_996)])
def test_the_cifar_net_has_the_released_parameters(classes, parameters):
    net = on_meta_device(lambda: IRevNet(**CIFAR, block="released", num_classes=classes))
    assert count_parameters(net) == parameters
    assert (net.features, net.total_stride) == (512, 4)  # 32 pixels become 8


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_bijective_net_keeps_the_number_of_values(channels):
    net = bijective(strides=[2, 2, 1], in_channels=channels)
    assert net.forward_features(images(channels=channels))[0].numel() == channels * 16 * 16


def test_blocks_swap_the_halves_and_the_head_is_bn_relu_average_and_classifier():
    net = bijective(blocks=[1], strides=[2]).eval()
    x = images()
    x1, x2 = space_to_depth(x, 2).chunk(2, 1)
    expected = torch.cat([space_to_depth(x2, 2), space_to_depth(x1, 2) + net.blocks.steps()[0].branch(x2)], 1)
    features = net.forward_features(x)
    assert torch.equal(features, expected)
    assert torch.allclose(net(x), net.classifier(F.relu(net.norm(features)).mean((2, 3))))


def test_the_injective_net_adds_zero_channels_behind_the_image():
    net = injective(blocks=[1, 1, 1])
    assert net.padding == 29
    x = images()
    seen = []
    net.blocks.steps()[0].register_forward_pre_hook(lambda _, args: seen.append(torch.cat(args, 1)))
    net(x)
    assert torch.equal(seen[0][:, :3], x)
    assert seen[0].shape[1] == 32
    assert seen[0][:, 3:].abs().max() == 0


def test_branches_are_bottlenecks_of_a_quarter_of_the_channels():
    net = bijective(block="paper")
    branch = net.blocks.steps()[2].branch  # the first block of the second stage, 6 -> 24 channels a half
    kernels = [(m.kernel_size[0], m.stride[0], m.in_channels, m.out_channels) for m in branch if hasattr(m, "stride")]
    assert kernels == [(1, 2, 6, 6), (3, 1, 6, 6), (1, 1, 6, 24)]
    assert isinstance(net.blocks.steps()[0].branch[0], nn.Conv2d)


# ---- the inverse ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [bijective, injective])
def test_the_inverse_gives_the_images_in_evaluation(build):
    net = build()
    x = images()
    net(x)  # statistics of one batch
    net.eval()
    assert isinstance(net, Invertible)
    with torch.no_grad():
        assert (net.inverse(net.forward_features(x)) - x).abs().max() < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_an_injective_net_is_inverted_only_because_its_zeros_are_known(training):
    """Zero channels have no variance: batch normalisation multiplies their rounding by 1/sqrt(epsilon) each time.

    In evaluation too, when the running variances have come down.
    """
    net, x = injective(), images()
    with torch.no_grad():
        for _ in range(150):
            net.forward_features(x)
        net.train(training)
        features = net.forward_features(x)
        assert (net.inverse(features) - x).abs().max() < 1e-4
        first = net.blocks.steps()[0]
        assert first.kept == 0
        first.kept = 16  # every channel is taken as it comes back
        assert (net.inverse(features) - x).abs().max() > 0.1


def test_zeros_are_known_also_where_the_second_half_holds_a_part_of_the_image():
    net = bijective(channels=[8, 32, 128])  # 12 channels of the image and 4 zeros
    x1, x2 = images(size=4, channels=8), images(size=4, channels=8)
    x2[:, 4:] = 0
    first = net.blocks.steps()[0]
    again = first.inverse(*first(x1, x2))
    assert torch.equal(again[1], x2)
    assert (again[0] - x1).abs().max() < 1e-4
    assert first.kept == 4


def test_a_bijective_net_in_training_can_be_inverted():
    net, x = bijective(), images()
    with torch.no_grad():
        assert (net.inverse(net.forward_features(x)) - x).abs().max() < 1e-4


# ---- the memory-saving form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("build", [bijective, injective])
def test_saving_memory_changes_neither_gradients_nor_statistics(build, dropout):
    """In float64, see test_revnet.py; for the injective net it holds because two blocks are stored."""
    gradients, buffers = [], []
    for memory_saving in (False, True):
        net = build(memory_saving=memory_saving, dropout=dropout).double()
        torch.manual_seed(2)
        F.cross_entropy(net(images().double()), torch.arange(4)).backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
        buffers.append(dict(net.named_buffers()))
    largest = max(value.abs().max() for value in gradients[0].values())
    for name, value in gradients[0].items():
        assert (gradients[1][name] - value).abs().max() <= 1e-9 * max(value.abs().max(), 1e-3 * largest), name
    assert all(torch.equal(value, buffers[1][name]) for name, value in buffers[0].items())


def test_the_injective_net_gets_right_gradients_in_float32_only_because_of_its_stored_blocks():
    def gradients(memory_saving, stored):
        net = injective(memory_saving=memory_saving)
        net.blocks.stored = stored
        F.cross_entropy(net(images(batch=8, size=32)), torch.arange(8)).backward()
        return [p.grad for p in net.parameters()]

    def difference(found, expected):
        largest = max(value.norm() for value in expected)
        pairs = zip(found, expected, strict=True)
        return max(((a - b).norm() / torch.maximum(b.norm(), 1e-4 * largest)).item() for a, b in pairs)

    plain = gradients(False, 2)
    assert difference(gradients(True, 2), plain) < 1e-4
    assert difference(gradients(True, 0), plain) > 0.1


@pytest.mark.parametrize("build", [bijective, injective])
@pytest.mark.parametrize(("few", "many"), [(3, 9), pytest.param(9, 27, marks=pytest.mark.slow)])
def test_saving_memory_stores_the_same_at_every_depth(build, few, many):
    def stored(blocks, memory_saving):
        net = on_meta_device(lambda: build(blocks=[blocks] * 3, memory_saving=memory_saving))
        return activation_bytes(net, torch.zeros(2, 3, 16, 16, device="meta"))

    assert stored(many, True) == stored(few, True)
    assert stored(many, False) > 2.5 * stored(few, False) > 2.5 * stored(few, True)


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": [16, 64, 128]}, r"model\.channels=\[16, 64, 128\] .*2 \* out = 4 \* in.*\[16, 64, 256\] fits"),
        ({"channels": [4, 16, 64]}, r"model\.channels=.*the image has 12 channels .* at least 6 to lose none"),
        ({"in_channels": 1}, r"model\.channels=.*the first stage needs at least 4"),
        ({"channels": [16, 64]}, r"model\.channels=\[16, 64\] does not fit 3 stages"),
        ({"channels": [6, 24, 96], "strides": [2, 2, 2]}, r"model\.channels=.*must be a multiple of 4"),
        ({"initial_downsampling": 1}, r"model\.initial_downsampling=1: 3 channels cannot be split in two halves"),
        ({"initial_downsampling": 0}, r"model\.initial_downsampling=0 must be at least 1"),
        ({"strides": [1, 2]}, r"model\.strides=\[1, 2\] must be 3 numbers, each 1 or 2"),
        ({"strides": [1, 2, 4]}, r"model\.strides=\[1, 2, 4\] must be 3 numbers, each 1 or 2"),
        ({"blocks": [1, 0, 1]}, r"model\.blocks=\[1, 0, 1\] must be 3 numbers, each at least 1"),
        ({"block": "basic"}, r"model\.block=basic is not known; choose one of paper, released"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0 is a probability"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        bijective(**options)


def test_images_and_features_that_do_not_fit_are_refused():
    net = bijective()
    with pytest.raises(ValueError, match=r"^data\.image_size: .*multiples of 8; these images have 16x12 pixels\.$"):
        net(torch.rand(1, 3, 16, 12))
    with pytest.raises(ValueError, match=r"have 192 channels, not 96\.$"):
        net.inverse(torch.rand(1, 96, 2, 2))


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_a_reconstruction_is_made_in_evaluation_and_its_error_is_written():
    net = bijective()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = images(batch=3)
    error = (reconstruct(net, x) - x).abs().max().item()
    figure = reconstruction_figure(net, x)
    assert figure.get_suptitle() == f"largest error {error:.1e}"
    assert error < 1e-5
    assert [len(axis.get_images()) for axis in figure.axes] == [1] * 6
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_interpolation_begins_and_ends_with_the_images_and_is_straight_in_the_features():
    net, (first, second) = bijective().eval(), images(batch=2)
    line = interpolate(net, first, second, 3)
    assert (line[0] - first).abs().max() < 1e-5
    assert (line[2] - second).abs().max() < 1e-5
    with torch.no_grad():
        start, middle, end = net.forward_features(line)
    assert (middle - (start + end) / 2).abs().max() < 1e-5
    figure = interpolation_figure(net, first, second, 3)
    assert [axis.get_title() for axis in figure.axes] == [
        f"{space} {share}" for space in ("features", "pixels") for share in ("0.00", "0.50", "1.00")
    ]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(TypeError, match=r"^Flatten has no inverse"):
        reconstruct(nn.Flatten(), images())
    with pytest.raises(ValueError, match=r"^steps=1 must be at least 2"):
        interpolate(bijective(), *images(batch=2), steps=1)
