"""The cross-stage partial connection: a part of a stage's channels goes around its blocks.

Wang, Liao, Wu, Chen, Hsieh, Yeh, "CSPNet: A New Backbone that can Enhance Learning Capability of CNN" (CVPR Workshops
2020), section 3, figures 2 to 4.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from convatlas.models.checks import require_choice
from convatlas.models.layers.conv_norm import conv_norm

FUSIONS = ("partial", "first", "last", "none")


class ChannelSplit(nn.Module):
    """The paper's split: `(B, C, H, W)` becomes the first `bypass` channels and the others."""

    def __init__(self, bypass: int, base: int) -> None:
        super().__init__()
        self.sizes = [bypass, base]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bypass, base = torch.split(x, self.sizes, dim=1)
        return bypass, base


class TwoConvolutions(nn.Module):
    """The released nets' split: two 1x1 convolutions on all channels; one convolution and a split would be the same.

    `(B, in, H, W)` becomes `(B, bypass, H, W)` and `(B, base, H, W)`.
    """

    def __init__(self, in_channels: int, bypass: int, base: int, activation: str | None) -> None:
        super().__init__()
        self.bypass = conv_norm(in_channels, bypass, 1, activation=activation)
        self.base = conv_norm(in_channels, base, 1, activation=activation)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bypass(x), self.base(x)


class CrossStagePartial(nn.Module):
    """One stage: x_U = w_U * [w_T * blocks(x''), x'] for the parts x' and x'' of its input (equations 3 and 4).

    Args:
        split: gives x' and x''.
        blocks: what x'' goes through, or None: then x' alone is left.
        transition: w_T, behind the blocks.
        fusion: w_U, behind the concatenation.
    """

    def __init__(self, split: nn.Module, blocks: nn.Module | None, transition: nn.Module, fusion: nn.Module) -> None:
        super().__init__()
        self.split = split
        self.blocks = blocks
        self.transition = transition
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        bypass, base = self.split(x)
        if self.blocks is None:
            return self.fusion(bypass)
        # x'' first, as in the released nets.
        return self.fusion(torch.cat([self.transition(self.blocks(base)), bypass], 1))


def cross_stage_partial(
    in_channels: int,
    out_channels: int,
    *,
    make_blocks: Callable[[int], tuple[nn.Module, int]],
    make_transition: Callable[[int, int], nn.Module],
    gamma: float,
    fusion: str,
) -> nn.Module:
    """Make any stage cross-stage partial, in one of the orders of figure 3; `(B, in, H, W) -> (B, out, H, W)`.

    Args:
        out_channels: channels that go out. Where both transitions are there, the first makes as many channels as the
            concatenation needs to have `out_channels` already; the paper does not say how many.
        make_blocks: builds the blocks for a number of channels; returns them and the number that they put out.
        make_transition: builds a transition from one number of channels to another.
        gamma: share of the channels that goes around the blocks; with 1 there are no blocks.
        fusion: `partial`: transition, concatenation, transition, the paper's (b); `first`: concatenation, transition
            (c); `last`: transition, concatenation (d); `none`: blocks on all channels, and a transition (a).
    """
    require_choice("fusion", fusion, FUSIONS)
    if not 0 <= gamma <= 1:
        raise ValueError(f"model.gamma={gamma} is a share; choose from 0 (all through the blocks) to 1 (none).")
    if fusion == "none":
        blocks, width = make_blocks(in_channels)
        return nn.Sequential(blocks, make_transition(width, out_channels))
    bypass = round(gamma * in_channels)
    base = in_channels - bypass
    split = ChannelSplit(bypass, base)
    if base == 0 and fusion != "last":
        return CrossStagePartial(split, None, nn.Identity(), make_transition(bypass, out_channels))
    if fusion != "first" and (base == 0 or bypass >= out_channels):
        raise ValueError(
            f"model.gamma={gamma} sends {bypass} of {in_channels} channels around a stage that puts out "
            f"{out_channels}: none is left for its blocks. Make it less, or take model.fusion=first."
        )
    blocks, width = make_blocks(base)
    if fusion == "first":
        return CrossStagePartial(split, blocks, nn.Identity(), make_transition(width + bypass, out_channels))
    transition = make_transition(width, out_channels - bypass)
    after = make_transition(out_channels, out_channels) if fusion == "partial" else nn.Identity()
    return CrossStagePartial(split, blocks, transition, after)
