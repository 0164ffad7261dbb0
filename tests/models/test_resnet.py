"""ImageNet ResNet: where the stride is, and which shortcuts."""

import pytest
import torch
from torchvision.models.resnet import BasicBlock, Bottleneck

from convatlas.models.classification.resnet import resnet_basic, resnet_bottleneck
from convatlas.models.costs import on_meta_device
from convatlas.models.layers.shortcuts import ZeroPadShortcut


def strides(net):
    return [(b.conv1.stride[0], b.conv2.stride[0]) for b in net.modules() if isinstance(b, Bottleneck)]


@pytest.mark.parametrize(("in_1x1", "first"), [(True, (2, 1)), (False, (1, 2))])
def test_three_stages_begin_with_a_stride_on_the_chosen_convolution(in_1x1, first):
    net = on_meta_device(lambda: resnet_bottleneck(50, stride_in_1x1=in_1x1))
    same = (1, 1)
    stages = [same] * 3, [first] + [same] * 3, [first] + [same] * 5, [first] + [same] * 2
    assert strides(net) == [stride for stage in stages for stride in stage]


@pytest.mark.parametrize("in_1x1", [True, False])
def test_the_stride_s_place_changes_neither_weights_nor_map_sizes(in_1x1):
    net = on_meta_device(lambda: resnet_bottleneck(50, stride_in_1x1=in_1x1))
    reference = on_meta_device(lambda: resnet_bottleneck(50))
    assert [(n, p.shape) for n, p in net.named_parameters()] == [(n, p.shape) for n, p in reference.named_parameters()]
    sizes = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        stage.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[1:])))
    net(torch.zeros(2, 3, 224, 224, device="meta"))
    assert sizes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


def test_identity_shortcuts_replace_every_projection():
    net = resnet_basic(18, shortcut="identity", num_classes=10)
    shortcuts = [b.downsample for b in net.modules() if isinstance(b, BasicBlock) and b.downsample is not None]
    assert [type(shortcut) for shortcut in shortcuts] == [ZeroPadShortcut] * 3
    x = torch.rand(1, 64, 8, 8)
    out = shortcuts[0](x)
    assert torch.equal(out[:, :64], x[:, :, ::2, ::2])
    assert out[:, 64:].abs().max() == 0
    assert out.shape == (1, 128, 4, 4)


def test_depths_and_shortcuts_that_the_paper_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"^model\.depth=50 .*18, 34\.$"):
        resnet_basic(50)
    with pytest.raises(ValueError, match=r"^model\.depth=18 .*50, 101, 152\.$"):
        resnet_bottleneck(18)
    with pytest.raises(ValueError, match=r"^model\.shortcut=none .*projection, identity\.$"):
        resnet_basic(18, shortcut="none")
