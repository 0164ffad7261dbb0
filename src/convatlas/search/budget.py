"""What a search costs, in multiply-adds: the same on every machine, so that two searches can be given the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["EVALUATION", "INPUT_GRADIENTS", "TRAINING", "macs_of"]

EVALUATION = 1
"""A forward pass, in multiply-adds of one."""
INPUT_GRADIENTS = 2
"""A forward pass and the gradients of activations, which is what parameters of an architecture need."""
TRAINING = 3
"""A forward pass and the gradients of activations and of weights."""


def macs_of(net: nn.Module, image: Tensor, *arguments: object) -> int:
    """Count the multiply-adds of convolutions and linear layers for one image `(1, C, H, W)`."""
    was_training = net.training
    counter = FlopCounterMode(display=False)
    two_images = image.expand(2, *image.shape[1:])  # a norm over the batch has nothing to do with a single value
    with torch.no_grad(), counter:
        net.eval()(two_images, *arguments)
    net.train(was_training)
    return counter.get_total_flops() // 4
