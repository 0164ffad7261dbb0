"""EfficientNet: one small net, and one rule that scales its depth, width and resolution together.

Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML 2019), sections 3 and 4. The
blocks are timm's, with TensorFlow's padding; the baseline and the rounding are here, so that depth or width can also
be scaled alone, as the paper does to compare.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from convatlas.models.checks import require_above_zero, require_choice, require_positive, require_probability
from convatlas.models.layers.inverted_residuals import inverted_residual_net


class Scaling(NamedTuple):
    """Factors of one released net on channels and on the blocks in a stage, its image size and its dropout."""

    width: float
    depth: float
    resolution: int
    dropout: float


SCALINGS = {
    "b0": Scaling(1.0, 1.0, 224, 0.2),
    "b1": Scaling(1.0, 1.1, 240, 0.2),
    "b2": Scaling(1.1, 1.2, 260, 0.3),
    "b3": Scaling(1.2, 1.4, 300, 0.3),
    "b4": Scaling(1.4, 1.8, 380, 0.4),
    "b5": Scaling(1.6, 2.2, 456, 0.4),
    "b6": Scaling(1.8, 2.6, 528, 0.5),
    "b7": Scaling(2.0, 3.1, 600, 0.5),
}
"""The released nets. They are rounded by hand: 1.2^phi, 1.1^phi and 1.15^phi of equation 3 do not give them."""

HEAD_CHANNELS = 1280
STAGES = (
    "ds_r{repeats}_k3_s{stride}_e1_c16_se0.25",
    "ir_r{repeats}_k3_s{stride}_e6_c24_se0.25",
    "ir_r{repeats}_k5_s{stride}_e6_c40_se0.25",
    "ir_r{repeats}_k3_s{stride}_e6_c80_se0.25",
    "ir_r{repeats}_k5_s{stride}_e6_c112_se0.25",
    "ir_r{repeats}_k5_s{stride}_e6_c192_se0.25",
    "ir_r{repeats}_k3_s{stride}_e6_c320_se0.25",
)
"""Table 1 in timm's notation: kernel, expansion, channels; `se`: squeeze as a fraction of a block's input channels."""
REPEATS = (1, 2, 2, 3, 3, 4, 1)
STRIDES = (1, 2, 2, 2, 1, 2, 1)


def round_width(channels: int, width: float, divisor: int = 8) -> int:
    """Scale channels to the nearest multiple of `divisor`, but never below 90 % of the exact value."""
    exact = channels * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded


def efficientnet(
    variant: str = "b0",
    *,
    width: float | None = None,
    depth: float | None = None,
    dropout: float | None = None,
    drop_path_rate: float = 0.2,
    strides: Sequence[int] = STRIDES,
    repeats: Sequence[int] = REPEATS,
    divisor: int = 8,
    bn_momentum: float = 0.01,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> nn.Module:
    """Build EfficientNet; `forward_features` gives `(B, 1280 * width, H/32, W/32)`.

    The resolution is the size of the images: `SCALINGS[variant].resolution` in the paper.

    Args:
        width: factor of all channels; null takes the variant's.
        depth: factor of the blocks in a stage; null takes the variant's.
        dropout: probability of setting a feature before the classifier to zero; null takes the variant's.
        drop_path_rate: probability of dropping the last residual branch; it grows linearly with the block's place.
        repeats: blocks of the seven stages before `depth` scales them.
        divisor: scaled channels are multiples of it.
        bn_momentum: weight of a new batch in the running statistics; 0.01 is TensorFlow's 0.99.
    """
    require_choice("variant", variant, SCALINGS)
    require_positive("divisor", divisor)
    require_probability("drop_path_rate", drop_path_rate)
    scaling = SCALINGS[variant]
    width = scaling.width if width is None else width
    depth = scaling.depth if depth is None else depth
    require_above_zero(width=width, depth=depth)
    return inverted_residual_net(
        STAGES,
        repeats=repeats,
        strides=strides,
        depth=depth,
        head_channels=round_width(HEAD_CHANNELS, width, divisor),
        dropout=scaling.dropout if dropout is None else dropout,
        round_chs_fn=partial(round_width, width=width, divisor=divisor),
        pad_type="same",
        act_layer=nn.SiLU,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=bn_momentum),
        drop_path_rate=drop_path_rate,
        num_classes=num_classes,
        in_chans=in_channels,
    )
