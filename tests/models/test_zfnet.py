"""ZFNet's map sizes, its normalisations and what it refuses."""

import pytest
import torch

from convatlas.models.classification.zfnet import ZFNet
from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.layers.normalisation import LocalContrastNorm, LocalResponseNorm, WithinChannelResponseNorm


def test_maps_are_those_of_figure_3():
    net = on_meta_device(ZFNet)
    sides = []
    for layer in (net.conv1, net.norm, net.conv2, net.conv5):
        layer.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))
    features = net.forward_features(torch.zeros(1, 3, 224, 224, device="meta"))
    assert sides == [110, 55, 26, 13, 13]
    assert features.shape == (1, 256, 6, 6)


def test_variant_b_has_more_maps_in_the_last_three_convolutions():
    net = on_meta_device(lambda: ZFNet(variant="b"))
    layers = (net.conv1, net.conv2, net.conv3, net.conv4, net.conv5)
    assert [layer.out_channels for layer in layers] == [96, 256, 512, 1024, 512]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("response", LocalResponseNorm),
        ("contrast", LocalContrastNorm),
        ("within_channel", WithinChannelResponseNorm),
        ("none", torch.nn.Identity),
    ],
)
def test_contrast_normalisation_changes_the_layer_and_no_parameter(name, kind):
    net = on_meta_device(lambda: ZFNet(contrast_normalisation=name))
    assert type(net.norm) is kind
    assert count_parameters(net) == 62357608


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "c"}, r"^model\.variant=c .*a, b"),
        ({"contrast_normalisation": "batch"}, r"^model\.contrast_normalisation=batch .*response, within_channel"),
        ({"stem": "large"}, r"^model\.stem=large"),
        ({"initialisation": "zero"}, r"^model\.initialisation=zero"),
        ({"width": -1.0}, r"^model\.width=-1"),
        ({"image_size": 46}, r"^model\.image_size=46 .*47"),
        ({"image_size": 7, "stem": "small"}, r"^model\.image_size=7 .*8"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta_device(lambda: ZFNet(**options))


@pytest.mark.parametrize(("stem", "smallest"), [("imagenet", 47), ("small", 8), ("small", 33)])
def test_the_first_fully_connected_layer_fits_the_maps(stem, smallest):
    net = on_meta_device(lambda: ZFNet(stem=stem, image_size=smallest, num_classes=3))
    assert net(torch.zeros(1, 3, smallest, smallest, device="meta")).shape == (1, 3)


def test_images_of_another_size_are_refused_with_the_option_to_set():
    with pytest.raises(ValueError, match=r"^model\.image_size=224 does not fit images of 32x32"):
        on_meta_device(ZFNet)(torch.zeros(1, 3, 32, 32, device="meta"))
