"""Cutting the middle out of a map, as a net without padding needs it for what is to fit its output."""

import torch
from torch import Tensor


def centre_crop(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Cut the middle out of `(..., H, W)`; of an odd rest, the larger part goes at the right and at the bottom."""
    top, left = (x.shape[-2] - size[0]) // 2, (x.shape[-1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]
