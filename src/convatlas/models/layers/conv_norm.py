"""The unit that darknet's nets are made of: a convolution without biases, batch normalisation, an activation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

__all__ = ["ACTIVATIONS", "conv_norm", "initialise_convolutions"]

SLOPE = 0.1
"""Slope of darknet's leaky ReLU below zero."""
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"leaky": partial(nn.LeakyReLU, SLOPE), "mish": nn.Mish}


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: str | None = "leaky",
) -> nn.Sequential:
    """Build one unit, padded so that stride 1 keeps the size: `(B, in, H, W) -> (B, out, ceil(H/s), ceil(W/s))`.

    Args:
        in_channels: channels that come in.
        out_channels: filters.
        kernel_size: side of the filters, odd.
        stride: of the convolution.
        groups: of the convolution.
        activation: a name of `ACTIVATIONS`, or None for a linear unit.
    """
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    unit = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
    if activation is not None:
        unit.append(ACTIVATIONS[activation]())
    return unit


def initialise_convolutions(net: nn.Module) -> None:
    """Draw all convolutions of a net as He et al. (ICCV 2015) for leaky ReLU, over a filter's outputs; biases are 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
