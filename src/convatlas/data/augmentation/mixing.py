"""Mixup and CutMix: two images of a batch, and their labels, become one.

Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018); Yun et al., "CutMix" (2019). The papers' programs draw
one share for a whole batch; here each image has its own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from convatlas.data.augmentation.pixels import covered

__all__ = ["beta", "mix", "own_shares"]


def beta(uniform: Tensor, alpha: float) -> Tensor:
    """Turn numbers `(B,)` drawn evenly from [0, 1) into numbers of Beta(alpha, alpha)."""
    from scipy.special import betaincinv

    values = betaincinv(alpha, alpha, uniform.double().cpu().numpy()).astype(np.float32)
    return torch.from_numpy(values).to(uniform.device)


def own_shares(shares: Tensor, centres: Tensor, cuts: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Say how much of each pixel, and of each label, is the image's own.

    Args:
        shares: `(B,)` the share that is drawn.
        centres: `(B, 2)` row and column of the rectangle, in [0, 1).
        cuts: `(B,)` bool: a rectangle comes from the other image, instead of a part of every pixel.
        side: of the images, in pixels.

    Returns:
        `(B, 1, S, S)`, and `(B,)`. A rectangle that reaches out of the image is clipped, and its label counts as much
        as what is left of it.
    """
    sides = ((1 - shares).sqrt() * side).long()
    rows, columns = (covered((centres[:, axis] * side).long(), sides, side) for axis in (0, 1))
    cut = 1 - (rows[:, :, None] & columns[:, None, :]).float()
    pixels = torch.where(cuts[:, None, None], cut, shares[:, None, None])
    return pixels[:, None], torch.where(cuts, cut.mean(dim=(1, 2)), shares)


def mix(images: Tensor, others: Tensor, pixels: Tensor) -> Tensor:
    """Blend `(B, C, S, S)` images with others; `pixels`: `(B, 1, S, S)`, the share of the first."""
    return pixels * images + (1 - pixels) * others
