"""Wide ResNet: block types, dropout inside the block, projections."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.wide_resnet import WideBlock, WideResNet
from convatlas.models.costs import count_parameters, on_meta_device

BLOCK_TYPES = [(3, 3), (3, 1, 3), (1, 3, 1), (1, 3), (3, 1), (3, 1, 1)]


def test_fewer_filters_make_a_net_of_the_same_form():
    thin = on_meta_device(lambda: WideResNet(depth=10, width=8, filters=2))
    plain = on_meta_device(lambda: WideResNet(depth=10, width=1))
    assert [block.convolutions[-1].out_channels for block in thin.blocks] == [16, 32, 64]
    assert count_parameters(thin) < count_parameters(plain)  # by the stem alone


# Table 2 of the paper: width 2, CIFAR-10, parameters in millions as printed.
@pytest.mark.parametrize(
    ("block", "depth", "millions"),
    [
        ((1, 3, 1), 40, 1.4),
        ((3, 1), 40, 1.2),
        ((1, 3), 40, 1.3),
        ((3, 1, 1), 40, 1.3),
        ((3, 3), 28, 1.5),
        ((3, 1, 3), 22, 1.1),
    ],
)
def test_block_types_have_the_paper_s_parameters(block, depth, millions):
    net = on_meta_device(lambda: WideResNet(depth=depth, width=2, block=block))
    assert round(count_parameters(net) / 1e6, 1) == millions


@pytest.mark.parametrize("kernel_sizes", BLOCK_TYPES)
def test_a_block_is_its_convolutions_after_bn_and_relu_plus_its_input(kernel_sizes):
    torch.manual_seed(0)
    block = WideBlock(4, 4, kernel_sizes, 1, 0.0).eval()
    x = torch.randn(2, 4, 6, 6)
    out = x
    for norm, convolution, size in zip(block.norms, block.convolutions, kernel_sizes, strict=True):
        assert convolution.kernel_size == (size, size)
        out = convolution(F.relu(norm(out)))
    assert torch.equal(block(x), out + x)


@pytest.mark.parametrize("kernel_sizes", BLOCK_TYPES)
def test_dropout_stands_between_the_convolutions_and_not_in_the_shortcut(kernel_sizes):
    block = WideBlock(4, 4, kernel_sizes, 1, 0.5)
    dropped = []
    block.dropout.register_forward_hook(lambda _module, inputs, _output: dropped.append(inputs[0]))
    x = torch.randn(2, 4, 6, 6)
    block(x)
    assert len(dropped) == len(kernel_sizes) - 1
    assert all(activation.min() >= 0 for activation in dropped)  # behind the ReLU

    class DropAll(nn.Module):
        def forward(self, activation):
            return torch.zeros_like(activation)

    block.dropout = DropAll()
    assert torch.equal(block(x), x)


def test_the_projection_starts_from_the_block_s_first_activation():
    block = WideBlock(4, 8, (3, 3), 2, 0.0).eval()
    nn.init.zeros_(block.convolutions[1].weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), F.conv2d(F.relu(block.norms[0](x)), block.projection.weight, stride=2))


@pytest.mark.parametrize(("width", "projected_blocks"), [(1, [2, 4]), (2, [0, 2, 4])])
def test_the_first_stage_projects_only_when_it_is_widened(width, projected_blocks):
    net = WideResNet(depth=16, width=width)
    assert [i for i, block in enumerate(net.blocks) if block.projection is not None] == projected_blocks


def test_stages_are_widened_and_the_stem_is_not():
    net = WideResNet(depth=10, width=3)
    assert net.stem.out_channels == 16
    assert [block.convolutions[-1].out_channels for block in net.blocks] == [48, 96, 192]
    assert net.forward_features(torch.rand(2, 3, 32, 32)).shape == (2, 192, 8, 8)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"^model\.depth=30 .*28 and 34\.$"):
        WideResNet(depth=30)
    with pytest.raises(ValueError, match=r"^model\.block=\[5, 3\] must list kernel sizes 1 and 3"):
        WideResNet(depth=10, block=[5, 3])
    with pytest.raises(ValueError, match=r"^model\.block=\[\] must list"):
        WideResNet(depth=10, block=[])
    with pytest.raises(ValueError, match=r"^model\.width=0 "):
        WideResNet(depth=10, width=0)
    with pytest.raises(ValueError, match=r"^model\.dropout=1\.5 "):
        WideResNet(depth=10, dropout=1.5)
