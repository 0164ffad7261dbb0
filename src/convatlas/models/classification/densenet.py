"""DenseNet for ImageNet, as torchvision holds it.

Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks" (CVPR 2017), Table 1.
"""

from functools import partial
from typing import Any

from torch import nn

from convatlas.models.adapters import torchvision_model
from convatlas.models.checks import require_choice, require_image_size, require_probability

DEPTHS = (121, 161, 169, 201)


def densenet(depth: int = 121, dropout: float = 0.0, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build DenseNet-121, -161, -169 or -201: `(B, C, H, W) -> (B, num_classes)`, images from 29x29 pixels.

    Args:
        depth: layers with weights.
        dropout: probability of dropping an activation behind each dense layer.
    """
    require_choice("depth", depth, DEPTHS)
    require_probability("dropout", dropout)
    net = torchvision_model(f"densenet{depth}", num_classes, in_channels, drop_rate=dropout)
    net.register_forward_pre_hook(partial(_check_images, f"densenet{depth}"))
    return net


def _check_images(name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Check that something is left of the images: two halvings round up, the three of the transitions down."""
    require_image_size(arguments[0], 29, name)
