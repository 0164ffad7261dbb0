"""AlexNet, in two towers as its authors split it over two GPUs.

Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (NIPS 2012), section 3
and figure 2. Each tower computes half of every layer. The towers see each other's maps in the third convolution and
in the fully connected layers alone, so that the second, fourth and fifth convolutions are convolutions in two groups.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_exact_size, require_probability, require_width
from convatlas.models.layers.initialisation import initialise
from convatlas.models.layers.normalisation import LocalResponseNorm

CHANNELS = (96, 256, 384, 384, 256)
HIDDEN = 4096
STEMS = {"imagenet": (11, 4, 0), "small": (5, 1, 2)}
"""Kernel, stride and padding of the first convolution."""
INITIALISATIONS = ("paper", "he")
STARTS_AT_ONE = ("conv2", "conv4", "conv5", "fc6", "fc7")
"""Layers whose biases start at 1, so that their ReLUs get positive inputs at first (section 5)."""


class Tower(nn.Module):
    """One GPU's half of the net; `forward` is in `AlexNet`, since the towers exchange what they computed."""

    def __init__(
        self, in_channels: int, channels: Sequence[int], hidden: int, stem: tuple[int, int, int], pixels: int
    ) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = channels
        self.conv1 = nn.Conv2d(in_channels, c1, *stem)
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2)
        self.conv3 = nn.Conv2d(2 * c2, c3, 3, padding=1)  # sees both towers
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1)
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1)
        self.fc6 = nn.Linear(2 * c5 * pixels, hidden)  # sees both towers
        self.fc7 = nn.Linear(2 * hidden, hidden)  # sees both towers
        self.norm = LocalResponseNorm()  # over this tower's own maps: no tower waits for the other here

    def start(self, images: Tensor) -> Tensor:
        """Convolutions 1 and 2, each with ReLU, response normalisation and overlapping pooling."""
        x = F.max_pool2d(self.norm(F.relu(self.conv1(images))), 3, stride=2)
        return F.max_pool2d(self.norm(F.relu(self.conv2(x))), 3, stride=2)

    def finish(self, both: Tensor) -> Tensor:
        """Convolutions 3, over the maps of both towers, to 5, and the last pooling."""
        x = F.relu(self.conv3(both))
        x = F.relu(self.conv4(x))
        return F.max_pool2d(F.relu(self.conv5(x)), 3, stride=2)

    @property
    def device(self) -> torch.device:
        return self.conv1.weight.device


class AlexNet(nn.Module):
    """AlexNet: `(B, C, image_size, image_size) -> (B, num_classes)`.

    Args:
        image_size: side of the images in pixels; the first fully connected layer fixes it. The paper writes 224, but
            its 55x55 maps come from 227.
        stem: first convolution, `imagenet` (11x11, stride 4), or `small` (5x5, stride 1) for small images.
        initialisation: `paper` (std 0.01, biases 1 where `STARTS_AT_ONE`), or `he` for nets much narrower than
            the paper's, through which signals of that size do not pass.
        devices: two devices, one a tower, for example `[cuda:0, cuda:1]`; the logits are on the first. The net then
            stays there when it is moved as a whole. None leaves it in one place.
    """

    def __init__(
        self,
        *,
        image_size: int = 227,
        stem: str = "imagenet",
        width: float = 1.0,
        dropout: float = 0.5,
        initialisation: str = "paper",
        devices: Sequence[str] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("stem", stem, STEMS)
        require_choice("initialisation", initialisation, INITIALISATIONS)
        require_width(width)
        require_probability("dropout", dropout)
        if devices is not None:
            check_devices(devices)
        self.image_size = image_size
        self.devices = None if devices is None else tuple(devices)
        channels = [max(1, round(maps * width / 2)) for maps in CHANNELS]
        hidden = max(1, round(HIDDEN * width / 2))
        pixels = last_map_side(image_size, stem) ** 2
        self.tower1, self.tower2 = (Tower(in_channels, channels, hidden, STEMS[stem], pixels) for _ in range(2))
        self.fc8 = nn.Linear(2 * hidden, num_classes)
        self.dropout = nn.Dropout(dropout)
        paper = initialisation == "paper"
        initialise(self, initialisation, lambda name: float(paper and name.split(".")[-2] in STARTS_AT_ONE))
        self._place()

    def _place(self) -> None:
        if self.devices is not None:
            self.tower1.to(self.devices[0])
            self.tower2.to(self.devices[1])
            self.fc8.to(self.devices[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the net as any module, then put the towers back in their places."""
        super()._apply(fn, recurse)
        self._place()
        return self

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, image_size, image_size) -> (B, 256 * width, H', W')`, 6x6 maps for 227 pixels."""
        require_exact_size(images, self.image_size)
        towers = (self.tower1, self.tower2)
        maps = [tower.start(images.to(tower.device)) for tower in towers]
        maps = [tower.finish(gather(maps, tower.device)) for tower in towers]
        return gather(maps, self.tower1.device)

    def forward(self, images: Tensor) -> Tensor:
        towers = (self.tower1, self.tower2)
        features = self.forward_features(images).flatten(1)
        hidden = [self.dropout(F.relu(tower.fc6(features.to(tower.device)))) for tower in towers]
        hidden = [self.dropout(F.relu(tower.fc7(gather(hidden, tower.device)))) for tower in towers]
        return self.fc8(gather(hidden, self.tower1.device))


def gather(halves: Sequence[Tensor], device: torch.device) -> Tensor:
    """Lay the channels of both towers side by side on one device."""
    return torch.cat([maps.to(device) for maps in halves], dim=1)


def check_devices(devices: Sequence[str]) -> None:
    """Raise ValueError unless `devices` names two devices of this machine."""
    if len(devices) != 2:
        raise ValueError(f"model.devices={list(devices)} must name two devices, one a tower, or be null.")
    for device in devices:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
            raise ValueError(
                f"model.devices={list(devices)}: there is no {device} here; name two that are, or null."
            ) from error


def last_map_side(image_size: int, stem: str) -> int:
    """Return the side of the maps after the third pooling, in pixels."""
    kernel, stride, padding = STEMS[stem]
    side = (image_size + 2 * padding - kernel) // stride + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    if side < 1:
        raise ValueError(
            f"model.image_size={image_size} leaves no pixel after the last pooling; model.stem=imagenet takes 67 and "
            "more, model.stem=small 15 and more."
        )
    return side
