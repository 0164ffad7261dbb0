"""VGG's six configurations against table 1, and torchvision's nets of the same name."""

import pytest
import torch
import torchvision
from torch import nn

from convatlas.models.classification.vgg import VGG
from convatlas.models.costs import on_meta_device
from convatlas.models.layers.normalisation import LocalResponseNorm

WEIGHT_LAYERS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}


@pytest.mark.parametrize(("configuration", "layers"), WEIGHT_LAYERS.items())
def test_configurations_have_the_papers_number_of_weight_layers(configuration, layers):
    net = on_meta_device(lambda: VGG(configuration=configuration))
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in net.modules()) == layers


def test_c_is_d_with_the_last_convolution_of_three_blocks_made_1x1():
    c = on_meta_device(lambda: VGG(configuration="C")).features
    d = on_meta_device(lambda: VGG(configuration="D")).features
    pairs = [(a, b) for a, b in zip(c, d, strict=True) if isinstance(a, nn.Conv2d)]
    assert [(a.in_channels, a.out_channels) for a, _ in pairs] == [(b.in_channels, b.out_channels) for _, b in pairs]
    assert {b.kernel_size for _, b in pairs} == {(3, 3)}
    assert [index for index, (a, _) in enumerate(pairs) if a.kernel_size == (1, 1)] == [6, 9, 12]


@pytest.mark.parametrize(("configuration", "sides"), [("A", [3, 3, 5, 5, 5]), ("D", [5, 5, 7, 7, 7])])
def test_large_filters_see_as_much_as_their_stacks(configuration, sides):
    net = on_meta_device(lambda: VGG(configuration=configuration, large_filters=True))
    convolutions = [layer for layer in net.features if isinstance(layer, nn.Conv2d)]
    assert [layer.kernel_size for layer in convolutions] == [(side, side) for side in sides]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 512]
    assert net.features(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 512, 7, 7)


def test_between_equal_maps_small_filters_take_less():
    """Lecture 1: three 3x3 filters have 27 C^2 weights, one 7x7 filter 49 C^2."""
    stack = on_meta_device(lambda: VGG(configuration="D")).features[-7:]
    large = on_meta_device(lambda: VGG(configuration="D", large_filters=True)).features[-3:]
    weights = [sum(p.numel() for p in part.parameters() if p.ndim == 4) for part in (stack, large)]
    assert weights == [27 * 512**2, 49 * 512**2]


def test_a_lrn_is_a_with_one_response_normalisation_after_the_first_convolution():
    plain = on_meta_device(lambda: VGG(configuration="A")).features
    normalised = on_meta_device(lambda: VGG(configuration="A-LRN")).features
    kinds = [type(layer) for layer in normalised]
    assert kinds[:4] == [nn.Conv2d, nn.ReLU, LocalResponseNorm, nn.MaxPool2d]
    assert kinds[:2] + kinds[3:] == [type(layer) for layer in plain]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("configuration", "depth"), [("A", 11), ("B", 13), ("D", 16), ("E", 19)])
def test_torchvisions_weights_have_the_same_names_and_shapes(configuration, depth, batch_norm):
    name = f"vgg{depth}_bn" if batch_norm else f"vgg{depth}"
    ours = on_meta_device(lambda: VGG(configuration=configuration, batch_norm=batch_norm))
    theirs = on_meta_device(lambda: torchvision.models.get_model(name, init_weights=False))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_with_torchvisions_weights_the_features_are_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.vgg11_bn(weights=None, num_classes=1).features.eval()
    ours = VGG(configuration="A", batch_norm=True, image_size=32, num_classes=1).eval()
    ours.features.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours.forward_features(images), theirs(images))


def test_features_of_224_pixels_are_7x7():
    net = on_meta_device(VGG)
    assert net.forward_features(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 512, 7, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"configuration": "F"}, r"^model\.configuration=F .*A, A-LRN, B, C, D, E"),
        ({"image_size": 31}, r"^model\.image_size=31 .*32"),
        ({"width": 0.0}, r"^model\.width=0"),
        ({"dropout": -0.5}, r"^model\.dropout=-0.5"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta_device(lambda: VGG(**options))


def test_images_of_another_size_are_refused_with_the_option_to_set():
    with pytest.raises(ValueError, match=r"^model\.image_size=224 does not fit images of 32x32"):
        on_meta_device(VGG)(torch.zeros(1, 3, 32, 32, device="meta"))
