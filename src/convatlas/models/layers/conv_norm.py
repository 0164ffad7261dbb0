"""Convolution, normalisation and activation, the unit that most nets are made of."""

from collections.abc import Callable
from functools import partial

from torch import nn

SLOPE = 0.1
"""Slope of darknet's leaky ReLU below zero."""
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"leaky": partial(nn.LeakyReLU, SLOPE), "mish": nn.Mish}


class ConvNormAct(nn.Sequential):
    """A convolution, padded so that stride 1 keeps the size, a normalisation and an activation.

    `(B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride))`.

    Args:
        kernel_size: side of the filters, or height and width; odd.
        padding: another padding of the convolution.
        norm: makes the normalisation, for a number of channels; None leaves it out.
        activation: makes the activation; None leaves it out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        padding: int | None = None,
        bias: bool = False,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
    ) -> None:
        sides = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
        around = (sides[0] // 2, sides[1] // 2) if padding is None else (padding,) * 2
        layers = [nn.Conv2d(in_channels, out_channels, sides, stride, around, groups=groups, bias=bias)]
        after = [norm(out_channels)] if norm else []
        super().__init__(*layers, *after, *([activation()] if activation else []))


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: str | None = "leaky",
) -> ConvNormAct:
    """Build darknet's unit; `activation` is a name of `ACTIVATIONS`, or None for a linear unit."""
    act = None if activation is None else ACTIVATIONS[activation]
    return ConvNormAct(in_channels, out_channels, kernel_size, stride, groups=groups, activation=act)


def initialise_convolutions(net: nn.Module) -> None:
    """Draw all convolutions of a net as He et al. (ICCV 2015) for leaky ReLU, over a filter's outputs; biases are 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
