"""What nets of searched cells share: NASNet and PNASNet as in the authors' TF-slim definition, and DARTS."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.core.errors import near_matches
from convatlas.models.checks import require_image_size
from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.models.layers.scheduled_drop_path import drop_path_figures, set_training_progress

MakesNorm = Callable[[int], nn.Module]


def check_edge(where: str, number: int, operation: str, state: int, operations: Sequence[str]) -> None:
    """Raise a ValueError unless the node of that number can apply an operation to a state."""
    if operation not in operations:
        raise ValueError(f"{where} has the unknown operation {operation}. {near_matches(str(operation), operations)}")
    if not 0 <= state < number + 2:
        raise ValueError(f"{where} takes state {state}; choose one from 0 to {number + 1}.")


def relu_conv_norm(
    in_channels: int, out_channels: int, stride: int = 1, norm: MakesNorm = nn.BatchNorm2d
) -> nn.Sequential:
    """Build ReLU, 1x1 convolution, BN."""
    return nn.Sequential(nn.ReLU(), *ConvNormAct(in_channels, out_channels, 1, stride, norm=norm, activation=None))


class FactorizedReduction(nn.Module):
    """Halve a map without losing every second pixel: two 1x1 convolutions look at the even and at the odd diagonal.

    ReLU, both convolutions, BN; `(B, in, H, W) -> (B, out, ceil(H/2), ceil(W/2))`.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: MakesNorm = nn.BatchNorm2d) -> None:
        super().__init__()
        half = out_channels // 2
        self.even = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - half, 1, stride=2, bias=False)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (-1, 1, -1, 1))  # a row and a column of zeros behind, so that odd sizes are rounded up
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], 1))


class AuxiliaryHead(nn.Module):
    """Classifier on inner maps; `(B, channels, H, W) -> (B, num_classes)`.

    Average pooling 5x5 leaves `side` x `side` pixels of the papers' images, which one convolution takes whole; of
    larger maps it takes every position, and the mean follows.
    """

    def __init__(
        self, channels: int, num_classes: int, *, pool_stride: int, side: int, norm: MakesNorm = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.pool_stride = pool_stride
        self.reduce = ConvNormAct(channels, 128, norm=norm)
        self.whole = ConvNormAct(128, 768, side, padding=0, norm=norm)
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(F.avg_pool2d(F.relu(x), 5, stride=self.pool_stride))
        return self.classifier(self.whole(x).mean((2, 3)))


class CellNet(nn.Module):
    """A net with drop path that grows with the training, and maybe an auxiliary head, which counts 0.4 of the loss.

    Args:
        smallest_in_training: side in pixels from which the auxiliary head has maps that it can take.
    """

    auxiliary_head: AuxiliaryHead | None

    def __init__(self, auxiliary: bool, smallest_in_training: int) -> None:
        super().__init__()
        self.auxiliary_loss_weights = (0.4,) if auxiliary else ()
        self.smallest_image_in_training = smallest_in_training

    def uses_auxiliary_head(self, images: Tensor) -> bool:
        """Return whether this pass computes the auxiliary head too, for images that are large enough."""
        used = self.training and bool(self.auxiliary_loss_weights)
        if used:
            require_image_size(images, self.smallest_image_in_training, "model.auxiliary=true")
        return used

    def begin_step(self, step: int, steps: int, seed: int) -> None:
        """Tell the drop paths which share of the training is done; what they drop is drawn by each process alone."""
        set_training_progress(self, step / steps)

    def step_figures(self) -> dict[str, float]:
        """Return the mean rate of the drop paths in the last training batch, if there are any."""
        return drop_path_figures(self)
