"""Pre-activation ResNet: clean identity paths, shared activations, where the stride is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.preact_resnet_cifar import (
    PreactBasicBlock,
    PreactBottleneck,
    PreactResNetCifar,
)


def last_convolution(block):
    return block.conv3 if isinstance(block, PreactBottleneck) else block.conv2


@pytest.mark.parametrize("block", [PreactBasicBlock(8, 8), PreactBottleneck(8, 2)])
def test_nothing_stands_in_the_identity_path(block):
    nn.init.zeros_(last_convolution(block).weight)
    x = torch.randn(2, 8, 5, 5)  # negative values too: no ReLU on the way
    assert torch.equal(block(x), x)


def test_the_first_activation_is_shared_with_the_shortcut_in_the_first_block_and_where_the_shape_changes():
    for bottleneck, depth in ((False, 20), (True, 29)):
        net = PreactResNetCifar(depth, bottleneck)
        for stage in (net.stage1, net.stage2, net.stage3):
            assert [block.shared for block in stage] == [True, False, False]


def test_a_shared_activation_feeds_the_projection():
    torch.manual_seed(0)
    block = PreactBottleneck(8, 4, stride=2, shared=True).eval()
    nn.init.zeros_(block.conv3.weight)
    x = torch.randn(2, 8, 6, 6)
    expected = F.conv2d(F.relu(block.bn1(x)), block.shortcut.weight, stride=2)
    assert torch.equal(block(x), expected)


def test_a_bottleneck_strides_its_first_convolution():
    block = PreactBottleneck(8, 4, stride=2)
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((2, 2), (1, 1), (1, 1))


@pytest.mark.parametrize(("depth", "bottleneck"), [(110, False), (164, True)])
def test_depth_counts_the_layers_of_the_main_path(depth, bottleneck):
    net = PreactResNetCifar(depth, bottleneck)
    layers = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    assert len(layers) == depth


@pytest.mark.parametrize(("depth", "bottleneck", "fits"), [(111, False, "110 and 116"), (165, True, "164 and 173")])
def test_depths_that_do_not_fit_are_refused(depth, bottleneck, fits):
    with pytest.raises(ValueError, match=rf"^model\.depth={depth} .*{fits}\.$"):
        PreactResNetCifar(depth, bottleneck)
