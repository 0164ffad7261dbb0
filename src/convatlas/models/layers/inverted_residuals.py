"""Nets of timm's inverted residuals, from a table in timm's notation: kernel, expansion, channels, squeeze."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from convatlas.models.checks import require_counts, require_positive, require_probability, require_strides

STEM_CHANNELS = 32


def inverted_residual_net(
    stages: Sequence[str],
    *,
    repeats: Sequence[int],
    strides: Sequence[int],
    head_channels: int,
    dropout: float,
    depth: float = 1.0,
    **options: Any,
) -> nn.Module:
    """Build timm's EfficientNet of any table.

    Args:
        stages: rows of timm's notation, with places for `repeats` and `stride`.
        repeats: blocks of the stages, before `depth` multiplies them, rounded up.
        strides: strides of the first blocks of the stages; the stem always has 2.
        head_channels: channels of the last 1x1 convolution.
        options: passed on to timm.
    """
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    require_strides(strides, len(stages))
    require_counts("repeats", repeats, len(stages))
    require_positive("head_channels", head_channels)
    require_probability("dropout", dropout)
    counts = [math.ceil(count * depth) for count in repeats]
    rows = [[row.format(repeats=n, stride=s)] for row, n, s in zip(stages, counts, strides, strict=True)]
    net: nn.Module = EfficientNet(
        decode_arch_def(rows), stem_size=STEM_CHANNELS, num_features=head_channels, drop_rate=dropout, **options
    )
    return net
