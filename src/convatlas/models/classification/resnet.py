"""ResNet for ImageNet: torchvision's nets with the paper's own choices where torchvision departs from them.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016), Table 1. The authors' bottleneck has
its stride on the first 1x1 convolution; torchvision's ("v1.5") has it on the 3x3 one, which costs 6 % more
multiply-adds at depth 50 and is a little better. The paper's 18-layer figure comes from shortcuts without parameters
(option A).
"""

from torch import nn

from convatlas.models.adapters import torchvision_model
from convatlas.models.checks import require_choice
from convatlas.models.layers.shortcuts import ZeroPadShortcut

BASIC_DEPTHS = (18, 34)
BOTTLENECK_DEPTHS = (50, 101, 152)
SHORTCUTS = ("projection", "identity")


def resnet_basic(
    depth: int = 18, shortcut: str = "projection", num_classes: int = 1000, in_channels: int = 3
) -> nn.Module:
    """Build ResNet-18 or -34: `(B, C, H, W) -> (B, num_classes)`.

    Args:
        depth: layers with weights.
        shortcut: where the shape changes, `projection` (a 1x1 convolution, option B) or `identity` (zero channels, A).
    """
    require_choice("depth", depth, BASIC_DEPTHS)
    require_choice("shortcut", shortcut, SHORTCUTS)
    net = torchvision_model(f"resnet{depth}", num_classes, in_channels)
    if shortcut == "identity":
        _use_identity_shortcuts(net)
    return net


def resnet_bottleneck(
    depth: int = 50,
    stride_in_1x1: bool = True,
    shortcut: str = "projection",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> nn.Module:
    """Build ResNet-50, -101 or -152: `(B, C, H, W) -> (B, num_classes)`.

    Args:
        depth: layers with weights.
        stride_in_1x1: stages begin with a strided 1x1 convolution, as in the authors' net; false strides the 3x3 one.
        shortcut: where the shape changes, `projection` (a 1x1 convolution, option B) or `identity` (zero channels, A).
    """
    require_choice("depth", depth, BOTTLENECK_DEPTHS)
    require_choice("shortcut", shortcut, SHORTCUTS)
    net = torchvision_model(f"resnet{depth}", num_classes, in_channels)
    if stride_in_1x1:
        _move_stride_to_first_convolution(net)
    if shortcut == "identity":
        _use_identity_shortcuts(net)
    return net


def _move_stride_to_first_convolution(net: nn.Module) -> None:
    from torchvision.models.resnet import Bottleneck

    for block in net.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _use_identity_shortcuts(net: nn.Module) -> None:
    for block in list(net.modules()):
        projection = getattr(block, "downsample", None)
        if projection is not None:
            convolution = projection[0]
            block.downsample = ZeroPadShortcut(convolution.in_channels, convolution.out_channels, convolution.stride[0])
