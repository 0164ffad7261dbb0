"""CIFAR DenseNet: concatenation order, compression, the memory-saving form."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.densenet_cifar import DenseBlock, DenseNetCifar, Transition
from convatlas.models.costs import activation_bytes, on_meta_device


def small_net(**options):
    torch.manual_seed(0)
    return DenseNetCifar(**{"depth": 13, "growth_rate": 4, "bottleneck": False, "compression": 1.0} | options)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_block_concatenates_its_input_and_then_its_layers_in_their_order(bottleneck):
    torch.manual_seed(0)
    block = DenseBlock(3, 5, 2, bottleneck=bottleneck, dropout=0.0, memory_saving=False).eval()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()  # every channel is normalised differently, so that order matters
    x = torch.randn(2, 5, 4, 4)
    seen = x
    for layer in block.layers:
        new = layer.rest(layer.conv1(F.relu(layer.norm1(seen))))
        assert new.shape == (2, 2, 4, 4)
        seen = torch.cat([seen, new], 1)
    assert torch.equal(block(x), seen)


def test_every_layer_sees_the_block_s_input_and_all_layers_before_it():
    block = DenseBlock(4, 6, 3, bottleneck=False, dropout=0.0, memory_saving=False)
    assert [layer.conv1.in_channels for layer in block.layers] == [6, 9, 12, 15]


@pytest.mark.parametrize(
    ("options", "stem"),
    [
        ({"bottleneck": False, "compression": 1.0}, 16),
        ({"bottleneck": True, "compression": 1.0, "depth": 16}, 16),
        ({"bottleneck": False, "compression": 0.5}, 16),
        ({"bottleneck": True, "compression": 0.5, "depth": 16}, 8),
    ],
)
def test_the_first_convolution_has_16_filters_and_in_densenet_bc_twice_the_growth_rate(options, stem):
    assert small_net(**options).stem.out_channels == stem


def test_transitions_keep_the_floor_of_the_compressed_channels_and_halve_the_map():
    net = small_net(depth=7, growth_rate=5, compression=0.5)
    widths = [(m[2].in_channels, m[2].out_channels) for m in net.modules() if isinstance(m, Transition)]
    assert widths == [(21, 10), (15, 7)]
    assert net.forward_features(torch.rand(2, 3, 16, 16)).shape == (2, 12, 4, 4)


def test_bottlenecks_have_four_times_the_growth_rate():
    block = DenseBlock(1, 6, 3, bottleneck=True, dropout=0.0, memory_saving=False)
    kernels = [(m.in_channels, m.out_channels, m.kernel_size) for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [(6, 12, (1, 1)), (12, 3, (3, 3))]


def test_dropout_follows_every_convolution_but_the_first():
    net = small_net(depth=16, bottleneck=True, compression=0.5, dropout=0.2)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in net.modules())
    dropouts = [m for m in net.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) == convolutions - 1
    assert all(m.p == 0.2 for m in dropouts)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_saving_memory_changes_no_bit_of_gradients_and_statistics(bottleneck):
    images = torch.rand(4, 3, 16, 16)
    nets = [small_net(depth=22, bottleneck=bottleneck, memory_saving=saving) for saving in (False, True)]
    for net in nets:
        F.cross_entropy(net(images), torch.arange(4)).backward()
    plain, saving = nets
    for (name, p), (_, q) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, p), (_, q) in zip(plain.named_buffers(), saving.named_buffers(), strict=True):
        assert torch.equal(p, q), name
    counted = [m.num_batches_tracked.item() for m in saving.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counted == [1] * len(counted)


def test_saving_memory_stores_activations_that_grow_linearly_with_depth():
    def stored(depth, saving):
        net = on_meta_device(lambda: small_net(depth=depth, memory_saving=saving))
        return activation_bytes(net, torch.zeros(2, 3, 32, 32, device="meta"))

    def second_difference(saving):
        return stored(31, saving) - 2 * stored(22, saving) + stored(13, saving)

    assert second_difference(saving=True) == 0
    assert second_difference(saving=False) > 0
    assert stored(31, saving=True) < stored(31, saving=False) / 3


def test_depths_that_do_not_fit_are_answered_with_those_that_do():
    with pytest.raises(ValueError, match=r"^model\.depth=41 .*the nearest that fit are 40 and 43\.$"):
        DenseNetCifar(depth=41, bottleneck=False)
    with pytest.raises(ValueError, match=r"^model\.depth=41 .*the nearest that fit are 40 and 46\.$"):
        DenseNetCifar(depth=41, bottleneck=True)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"^model\.compression=0 must be above 0"):
        small_net(compression=0)
    with pytest.raises(ValueError, match=r"^model\.growth_rate=0 "):
        small_net(growth_rate=0)
    with pytest.raises(ValueError, match=r"^model\.dropout=-0\.1 "):
        small_net(dropout=-0.1)


def test_images_that_the_transitions_would_leave_nothing_of_are_refused():
    with pytest.raises(ValueError, match=r"^data\.image_size: .*from 4x4 pixels; these have 3x8\."):
        small_net()(torch.rand(2, 3, 3, 8))
