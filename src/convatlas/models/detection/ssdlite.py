"""SSDLite: single-shot detection with depthwise-separable heads on MobileNetV3-Large.

Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), section
6.2, introduces SSDLite; Howard et al., "Searching for MobileNetV3" (ICCV 2019), section 6.3 and table 6, put it on
MobileNetV3. The net is torchvision's.
"""

from __future__ import annotations

from torch import nn
from torchvision.models.detection.ssdlite import ssdlite320_mobilenet_v3_large

from convatlas.models.adapters import with_input_channels
from convatlas.models.layers.detector_transform import FixedSizeTransform

__all__ = ["ssdlite_mobilenet_v3_large"]


def ssdlite_mobilenet_v3_large(image_size: int = 320, num_classes: int = 91, in_channels: int = 3) -> nn.Module:
    """Build torchvision's SSDLite without trained weights, for images of one size.

    In training `net(images, targets)` returns the losses `bbox_regression` and `classification`; in evaluation
    `net(images)` returns boxes, scores and labels of each image. Images are a list, or a batch, of tensors
    `(in_channels, image_size, image_size)` in [0, 1]; targets hold boxes `(n, 4)` as `x1, y1, x2, y2` in pixels and
    labels `(n,)` from 1. An image may have no object. Default boxes are fractions of the image, so that any size works;
    the last maps shrink to one pixel below 512, where batch normalisation needs two training images or more.

    Args:
        image_size: side of the images in pixels, 320 in the paper; they are not rescaled.
        num_classes: classes, the background counted as class 0.
        in_channels: channels of the images.

    Raises:
        ValueError: `image_size` below 32.
    """
    if image_size < 32:
        raise ValueError(f"model.image_size={image_size} leaves the first map without a pixel; use 32 or more.")
    net = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)
    net.transform = FixedSizeTransform(image_size, in_channels, size_divisible=1)
    return with_input_channels(net, in_channels)
