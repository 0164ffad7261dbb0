"""DenseNet for small images.

Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks" (CVPR 2017), section 3: in a dense
block every layer sees the concatenated outputs of all layers before it. Three blocks, a 3x3 convolution before the
first, transitions between them. The memory-saving form is that of Pleiss et al., "Memory-Efficient Implementation of
DenseNets" (2017): what a layer computes from the concatenation is computed again for the backward pass, so that the
stored activations grow linearly with depth instead of quadratically.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convatlas.models.checks import blocks_for_depth, require_image_size, require_positive, require_probability
from convatlas.models.layers.classifier import PooledClassifier
from convatlas.models.layers.initialisation import initialise_he
from convatlas.models.layers.reversible import recomputing


class DenseLayer(nn.Module):
    """BN-ReLU-3x3, or BN-ReLU-1x1-BN-ReLU-3x3 with a bottleneck; a list of maps in, `(B, growth_rate, H, W)` out.

    The 1x1 convolution of a bottleneck has 4 * growth_rate filters. Dropout follows each convolution.
    """

    def __init__(
        self, in_channels: int, growth_rate: int, bottleneck: bool, dropout: float, memory_saving: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        if bottleneck:
            self.conv1 = nn.Conv2d(in_channels, 4 * growth_rate, 1, bias=False)
            convolution = nn.Conv2d(4 * growth_rate, growth_rate, 3, padding=1, bias=False)
            second = (nn.BatchNorm2d(4 * growth_rate), nn.ReLU(), convolution)
            self.rest: nn.Module = nn.Sequential(nn.Dropout(dropout), *second, nn.Dropout(dropout))
        else:
            self.conv1 = nn.Conv2d(in_channels, growth_rate, 3, padding=1, bias=False)
            self.rest = nn.Dropout(dropout)
        self.memory_saving = memory_saving

    def _first(self, *maps: Tensor) -> Tensor:
        """Concatenate the maps, oldest first, and apply the first BN, ReLU and convolution."""
        return self.conv1(F.relu(self.norm1(torch.cat(maps, 1))))

    def forward(self, maps: list[Tensor]) -> Tensor:
        if self.memory_saving and self.training and torch.is_grad_enabled():
            contexts = partial(recomputing, self.norm1)
            out: Tensor = checkpoint(
                self._first, *maps, use_reentrant=False, context_fn=contexts, preserve_rng_state=False
            )
        else:
            out = self._first(*maps)
        return self.rest(out)


class DenseBlock(nn.Module):
    """`layers` dense layers; `(B, in, H, W) -> (B, in + layers * growth_rate, H, W)`, the input's channels first."""

    def __init__(
        self, layers: int, in_channels: int, growth_rate: int, *, bottleneck: bool, dropout: float, memory_saving: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DenseLayer(in_channels + i * growth_rate, growth_rate, bottleneck, dropout, memory_saving)
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps))
        return torch.cat(maps, 1)


class Transition(nn.Sequential):
    """BN-ReLU-1x1 and 2x2 average pooling; `(B, in, H, W) -> (B, out, H/2, W/2)`."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.Dropout(dropout),
            nn.AvgPool2d(2),
        )


class DenseNetCifar(PooledClassifier):
    """DenseNet of `depth` layers; with `bottleneck` and `compression` below 1 it is DenseNet-BC.

    Args:
        depth: layers with weights: 3n+4, with bottlenecks 6n+4.
        bottleneck: put a 1x1 convolution before each 3x3 one (DenseNet-B).
        compression: share of the channels that a transition keeps (DenseNet-C below 1; the paper's theta).
        dropout: probability of dropping an activation behind each convolution but the first (the paper: 0.2 without
            augmentation).
        memory_saving: compute concatenations, their normalisations and the convolutions on them again for the backward
            pass instead of storing them; gradients and statistics are the same bits.
    """

    def __init__(
        self,
        *,
        depth: int = 100,
        growth_rate: int = 12,
        bottleneck: bool = True,
        compression: float = 0.5,
        dropout: float = 0.0,
        memory_saving: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        layers = blocks_for_depth(depth, step=6 if bottleneck else 3, others=4)
        require_positive("growth_rate", growth_rate)
        require_probability("dropout", dropout)
        if not 0 < compression <= 1:
            raise ValueError(
                f"model.compression={compression} must be above 0 and at most 1, which keeps every channel."
            )
        channels = 2 * growth_rate if bottleneck and compression < 1 else 16
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        layer_options: dict[str, Any] = {"bottleneck": bottleneck, "dropout": dropout, "memory_saving": memory_saving}
        stages: list[nn.Module] = []
        for stage in range(3):
            if stage > 0:
                kept = max(1, int(compression * channels))
                stages.append(Transition(channels, kept, dropout))
                channels = kept
            stages.append(DenseBlock(layers, channels, growth_rate, **layer_options))
            channels += layers * growth_rate
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_he(self)
        nn.init.zeros_(self.classifier.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, channels, H/4, W/4)`, behind the last BN and ReLU."""
        require_image_size(images, 4, "densenet_cifar")
        return F.relu(self.norm(self.stages(self.stem(images))))
