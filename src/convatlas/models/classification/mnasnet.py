"""MnasNet-A1, found by reinforcement learning with the measured latency of a phone in the reward.

Tan et al., "MnasNet: Platform-Aware Neural Architecture Search for Mobile" (CVPR 2019), figure 7. The blocks are
timm's.
"""

from collections.abc import Sequence
from functools import partial

from torch import nn

from convatlas.models.checks import require_width
from convatlas.models.layers.inverted_residuals import inverted_residual_net

HEAD_CHANNELS = 1280
STAGES = (
    "ds_r{repeats}_k3_s{stride}_e1_c16_noskip",
    "ir_r{repeats}_k3_s{stride}_e6_c24",
    "ir_r{repeats}_k5_s{stride}_e3_c40_se0.25",
    "ir_r{repeats}_k3_s{stride}_e6_c80",
    "ir_r{repeats}_k3_s{stride}_e6_c112_se0.25",
    "ir_r{repeats}_k5_s{stride}_e6_c160_se0.25",
    "ir_r{repeats}_k3_s{stride}_e6_c320",
)
"""Figure 7 in timm's notation: kernel, expansion, channels; `se`: squeeze as a fraction of a block's input channels."""
REPEATS = (1, 2, 3, 4, 2, 3, 1)
STRIDES = (1, 2, 2, 2, 1, 2, 1)


def mnasnet_a1(
    width: float = 1.0,
    *,
    strides: Sequence[int] = STRIDES,
    repeats: Sequence[int] = REPEATS,
    head_channels: int = HEAD_CHANNELS,
    dropout: float = 0.2,
    bn_momentum: float = 0.01,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> nn.Module:
    """Build MnasNet-A1; `forward_features` gives `(B, head_channels, H/32, W/32)`.

    Args:
        width: factor of all channels but the head's, rounded to multiples of 8 (the paper's depth multiplier).
        bn_momentum: weight of a new batch in the running statistics; 0.01 is the paper's 0.99.
    """
    from timm.models._efficientnet_builder import round_channels

    require_width(width)
    return inverted_residual_net(
        STAGES,
        repeats=repeats,
        strides=strides,
        head_channels=head_channels,
        dropout=dropout,
        round_chs_fn=partial(round_channels, multiplier=width),
        act_layer=nn.ReLU,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=bn_momentum),
        num_classes=num_classes,
        in_chans=in_channels,
    )
