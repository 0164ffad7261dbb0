"""The net for MNIST whose second kernel is generated."""

import pytest
import torch
import torch.nn.functional as F

from convatlas.models.classification.hyper_convnet import HyperConvNet
from convatlas.models.costs import count_parameters, measure_costs, on_meta_device


def test_4240_weights_and_4_numbers_replace_12544_weights():
    generated, plain = HyperConvNet(), HyperConvNet(generated=False)
    assert count_parameters(generated.kernels.generator) == 4_240
    assert generated.kernels.embeddings.shape == (1, 4)
    assert count_parameters(plain.kernels) == 12_544
    others = (49 * 16 + 16) + 16 + (784 * 10 + 10)
    assert count_parameters(generated) == 4_244 + others
    assert count_parameters(plain) == 12_544 + others


def test_multiply_adds_of_the_plain_net_are_those_of_its_three_layers():
    net = on_meta_device(lambda: HyperConvNet(generated=False))
    assert measure_costs(net, (1, 28, 28)).macs == 28**2 * 49 * 16 + 14**2 * 49 * 16 * 16 + 784 * 10


def test_the_net_is_two_convolutions_with_pooling_and_a_linear_layer():
    torch.manual_seed(0)
    net = HyperConvNet(in_channels=2).eval()
    images = torch.rand(3, 2, 28, 28)
    (kernel,) = net.kernels()
    x = F.max_pool2d(F.relu(F.conv2d(images, net.conv1.weight, net.conv1.bias, padding=3)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, kernel, net.bias2, padding=3)), 2)
    assert torch.equal(net(images), F.linear(x.flatten(1), net.classifier.weight, net.classifier.bias))


def test_gradients_reach_the_embedding_and_the_generator():
    torch.manual_seed(0)
    net = HyperConvNet()
    net(torch.rand(2, 1, 28, 28)).square().sum().backward()
    assert (net.kernels.embeddings.grad != 0).all()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_wrong_numbers_and_sizes_are_refused():
    with pytest.raises(ValueError, match=r"^model\.embedding_size=0 "):
        HyperConvNet(embedding_size=0)
    with pytest.raises(ValueError, match=r"^data\.image_size: hyper_convnet takes images from 4x4 pixels"):
        HyperConvNet()(torch.rand(1, 1, 3, 3))
