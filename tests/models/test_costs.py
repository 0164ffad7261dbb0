"""Measuring a net leaves nothing behind."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from convatlas.models.costs import activation_bytes


class Squashed(nn.Module):
    """Sigmoid saves its own output for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, images: Tensor) -> Tensor:
        output = torch.sigmoid(images * self.weight)
        self.seen = weakref.ref(output)
        return output


def test_what_autograd_saved_is_freed_again():
    net = Squashed()
    assert activation_bytes(net, torch.ones(3, 4)) == 2 * 3 * 4 * 4  # the images and the output
    assert net.seen() is None
