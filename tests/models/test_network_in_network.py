"""Network in Network: mlpconv layers, three heads."""

import pytest
import torch
from torch import nn

from convatlas.models.classification.network_in_network import HEADS, MLPConv, NetworkInNetwork
from convatlas.models.costs import on_meta_device

SMALL = {"width": 0.125, "in_channels": 1}


def test_an_mlpconv_layer_is_one_perceptron_slid_over_the_image():
    torch.manual_seed(0)
    layer = MLPConv(2, 3, (5, 4, 3), batch_norm=False).double()
    image = torch.randn(1, 2, 6, 6, dtype=torch.double)
    patch = image[0, :, 1:4, 2:5].flatten()
    hidden = patch
    for convolution in (layer[0], layer[2], layer[4]):
        hidden = torch.relu(convolution.weight.flatten(1) @ hidden + convolution.bias)
    torch.testing.assert_close(layer(image)[0, :, 2, 3], hidden)


def test_layers_have_the_releases_sizes():
    net = on_meta_device(NetworkInNetwork)
    shapes = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [
        *((3, 192, 5), (192, 160, 1), (160, 96, 1)),
        *((96, 192, 5), (192, 192, 1), (192, 192, 1)),
        *((192, 192, 3), (192, 192, 1), (192, 10, 1)),
    ]


def test_without_perceptrons_three_linear_filters_are_left():
    net = on_meta_device(lambda: NetworkInNetwork(perceptrons=False))
    shapes = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(3, 96, 5), (96, 192, 5), (192, 10, 3)]


def test_logits_are_the_means_of_one_map_a_class():
    net = NetworkInNetwork(**SMALL).eval()
    images = torch.randn(2, 1, 32, 32)
    maps = net.forward_features(images)
    assert maps.shape == (2, 10, 8, 8)
    torch.testing.assert_close(net(images), maps.mean((2, 3)))


@pytest.mark.parametrize("head", HEADS[1:])
def test_fully_connected_heads_are_linear_in_the_last_maps(head):
    net = NetworkInNetwork(head=head, **SMALL).double().eval()
    linear = next(m for m in net.head if isinstance(m, nn.Linear))
    images = torch.randn(2, 1, 32, 32, dtype=torch.double)
    maps = net.forward_features(images)
    torch.testing.assert_close(net(images), maps.flatten(1) @ linear.weight.T + linear.bias)


def test_only_the_head_named_so_has_dropout_in_it():
    heads = {head: NetworkInNetwork(head=head, dropout=0.3, **SMALL).head for head in HEADS}
    with_dropout = {name: [m.p for m in head if isinstance(m, nn.Dropout)] for name, head in heads.items()}
    assert with_dropout == {"global_average_pooling": [], "fully_connected": [], "fully_connected_dropout": [0.3]}


def test_global_average_pooling_takes_images_of_any_size():
    net = NetworkInNetwork(**SMALL).eval()
    assert net(torch.zeros(1, 1, 40, 23)).shape == (1, 10)


def test_a_fully_connected_head_is_bound_to_one_size():
    net = NetworkInNetwork(head="fully_connected", image_size=30, **SMALL).eval()
    assert net(torch.zeros(1, 1, 30, 30)).shape == (1, 10)
    with pytest.raises(ValueError, match=r"^model\.image_size=30 does not fit images of 32x32"):
        net(torch.zeros(1, 1, 32, 32))


def test_images_below_four_pixels_are_refused():
    with pytest.raises(ValueError, match=r"^data\.image_size: .*4x4"):
        NetworkInNetwork(**SMALL)(torch.zeros(1, 1, 3, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "linear"}, r"^model\.head=linear .*global_average_pooling, fully_connected, fully_connected_dropout"),
        ({"width": 0.0}, r"^model\.width=0"),
        ({"dropout": 1.5}, r"^model\.dropout=1.5"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NetworkInNetwork(**options)
