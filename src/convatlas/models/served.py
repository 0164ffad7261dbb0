"""A net as other programs need it: raw images in, plain tensors out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ServedNet(nn.Module):
    """A classification or segmentation net behind its normalisation.

    `(B, C, H, W)` images in [0, 1] give `(B, classes)` or `(B, classes, H, W)` probabilities, float32 both.

    Args:
        net: in evaluation mode, of any floating type.
        mean: subtracted from each channel.
        std: what each channel is then divided by; nowhere 0.
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.dtype = next(net.parameters()).dtype
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(((images - self.mean) / self.std).to(self.dtype))
        return logits.float().softmax(dim=1)


class ServedDetector(nn.Module):
    """A detector with its choice of boxes, for one image at a time.

    `(1, C, S, S)` in [0, 1] gives `boxes (n, 4)` in pixels of S, `scores (n,)` and `labels (n,)` from 1, the
    top-scoring first.

    Args:
        net: in evaluation mode.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.net([images[0]])[0]
        return found["boxes"], found["scores"], found["labels"]
