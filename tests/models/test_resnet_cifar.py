"""CIFAR ResNet: depth, shortcuts, the plain net."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.resnet_cifar import BasicBlock, ResNetCifar


def silence_residuals(net):
    """Make every block's convolutions contribute zero, so that only shortcuts are left."""
    for block in net.modules():
        if isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_depth_counts_the_layers_with_weights(depth):
    layers = [m for m in ResNetCifar(depth).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_a_shortcut_takes_every_second_pixel_and_adds_zero_channels_behind():
    block = BasicBlock(2, 5, stride=2)
    silence_residuals(block)
    x = torch.rand(3, 2, 7, 8)
    expected = torch.zeros(3, 5, 4, 4)
    expected[:, :2] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_an_option_b_shortcut_projects_only_where_the_shape_changes():
    net = ResNetCifar(20, shortcut="projection")
    projections = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert projections == ["stage2.0.shortcut.0", "stage3.0.shortcut.0"]


def test_the_last_relu_comes_after_the_sum():
    torch.manual_seed(0)
    block = BasicBlock(4, 4).eval()
    x = torch.randn(2, 4, 6, 6)
    residual = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), F.relu(residual + x))
    assert (residual + x < 0).any()


def test_the_plain_net_has_the_weights_of_the_residual_net_and_no_way_around_them():
    plain, residual = ResNetCifar(20, shortcut="none"), ResNetCifar(20)
    residual.load_state_dict(plain.state_dict())
    for net in (plain, residual):
        silence_residuals(net)
        net.eval()
    x = torch.rand(2, 3, 32, 32)
    assert plain.forward_features(x).abs().max() == 0
    assert residual.forward_features(x).abs().max() > 0


def test_shortcuts_carry_a_gradient_that_vanishes_in_the_plain_net():
    """Without normalisation and with weights that shrink the signal, as in the chain that the lecture draws."""

    def first_gradient(shortcut):
        torch.manual_seed(0)
        net = ResNetCifar(56, width=4, shortcut=shortcut).eval()  # with its first statistics BN changes nothing
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data.mul_(0.5)
        net(torch.rand(2, 3, 16, 16)).square().sum().backward()
        return net.stem[0].weight.grad.norm().item()

    assert first_gradient("none") < 1e-6 * first_gradient("identity")


def test_features_are_a_quarter_of_the_image_s_size():
    assert ResNetCifar(8, width=4, in_channels=1).forward_features(torch.rand(2, 1, 32, 24)).shape == (2, 16, 8, 6)


def test_unknown_shortcuts_and_depths_are_refused():
    with pytest.raises(ValueError, match=r"^model\.depth=21 .*20 and 26\.$"):
        ResNetCifar(21)
    with pytest.raises(ValueError, match=r"^model\.shortcut=b .*identity, projection, none\.$"):
        ResNetCifar(20, shortcut="b")
    with pytest.raises(ValueError, match=r"^model\.width=0 "):
        ResNetCifar(20, width=0)
