"""MobileNetV2: inverted residuals with linear bottlenecks.

Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), table 2.
The blocks are timm's.
"""

from collections.abc import Sequence
from functools import partial

from torch import nn

from convatlas.models.checks import require_positive
from convatlas.models.layers.inverted_residuals import inverted_residual_net

HEAD_CHANNELS = 1280
STAGES = (
    "ds_r{repeats}_k3_s{stride}_e1_c16",
    "ir_r{repeats}_k3_s{stride}_e6_c24",
    "ir_r{repeats}_k3_s{stride}_e6_c32",
    "ir_r{repeats}_k3_s{stride}_e6_c64",
    "ir_r{repeats}_k3_s{stride}_e6_c96",
    "ir_r{repeats}_k3_s{stride}_e6_c160",
    "ir_r{repeats}_k3_s{stride}_e6_c320",
)
"""Table 2 in timm's notation: kernel, expansion, channels."""
REPEATS = (1, 2, 3, 4, 3, 3, 1)
STRIDES = (1, 2, 2, 2, 1, 2, 1)


def mobilenet_v2(
    width: float = 1.0,
    *,
    strides: Sequence[int] = STRIDES,
    repeats: Sequence[int] = REPEATS,
    head_channels: int = HEAD_CHANNELS,
    dropout: float = 0.2,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> nn.Module:
    """Build MobileNetV2; `forward_features` gives `(B, head_channels, H/32, W/32)`.

    Args:
        width: factor of all channels, rounded to multiples of 8; below 1 the head keeps its channels (section 4).
        head_channels: channels of the last 1x1 convolution at width 1.
    """
    from timm.models._efficientnet_builder import round_channels

    if width <= 0:
        raise ValueError(f"model.width={width} must be above 0; the paper has 0.35, 0.5, 0.75, 1.0 and 1.4.")
    require_positive("head_channels", head_channels)
    return inverted_residual_net(
        STAGES,
        repeats=repeats,
        strides=strides,
        head_channels=max(head_channels, round_channels(head_channels, width)),
        dropout=dropout,
        round_chs_fn=partial(round_channels, multiplier=width),
        act_layer=nn.ReLU6,
        num_classes=num_classes,
        in_chans=in_channels,
    )
