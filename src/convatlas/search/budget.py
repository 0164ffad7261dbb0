"""What a search costs, in multiply-adds: the same on every machine, so that two searches can be given the same."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

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


class MacsCounter:
    """Counts the multiply-adds of a net while it works, for nets of which every batch takes another part.

    Attributes:
        macs: of convolutions and linear layers in all forward passes so far, over all images.
    """

    def __init__(self, net: nn.Module) -> None:
        self.macs = 0
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(self._count)

    def _count(self, module: nn.Module, _: Any, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        self.macs += output.numel() * weight[0].numel()

    def take(self) -> int:
        taken, self.macs = self.macs, 0
        return taken
