"""Normalisation of responses as nets had it before batch normalisation; none of these layers is trained.

- `LocalResponseNorm`: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks"
  (NIPS 2012), section 3.3: across neighbouring maps.
- `WithinChannelResponseNorm`: the same idea over neighbouring pixels of one map, as in the released SPP-net.
- `LocalContrastNorm`: Jarrett, Kavukcuoglu, Ranzato, LeCun, "What is the Best Multi-Stage Architecture for Object
  Recognition?" (ICCV 2009), section 2: subtract the local mean and divide by the local standard deviation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalResponseNorm(nn.Module):
    """b_i = a_i / (k + alpha * sum_j a_j^2)^beta over the `size` maps around map i; any `(B, C, H, W)`.

    The sum is not divided by `size`: that is the paper's formula. `torch.nn.LocalResponseNorm` and Caffe do divide, so
    the paper's alpha is `size` times smaller there than it looks.

    Args:
        size: maps in the sum (the paper's n), cut off at the first and the last map.
        k: constant that keeps the divisor away from zero.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        channels, before = x.shape[1], self.size // 2
        squares = F.pad(x.square(), (0, 0, 0, 0, before, self.size - 1 - before))
        energy = squares[:, :channels]
        for first in range(1, self.size):  # three times as fast as pooling over the axis of maps
            energy = energy + squares[:, first : first + channels]
        return x / (self.k + self.alpha * energy) ** self.beta

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class WithinChannelResponseNorm(nn.Module):
    """b = a / (1 + alpha * mean a^2)^beta over the `size` x `size` pixels around; any `(B, C, H, W)`.

    Beyond the border pixels are zero and counted in the mean. The constants are those of the released SPP-net
    (Zeiler_conv5.prototxt).

    Args:
        size: side of the window in pixels, odd.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        energy = F.avg_pool2d(x.square(), self.size, stride=1, padding=self.size // 2)
        return x / (1 + self.alpha * energy) ** self.beta

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}"


class LocalContrastNorm(nn.Module):
    """Subtract the local mean over pixels and maps, then divide by the local standard deviation; any `(B, C, H, W)`.

    v = x - sum w x; y = v / max(mean sigma, sigma) with sigma^2 = sum w v^2. The weights w are a Gaussian window over
    pixels, the same for every map, and sum to 1; at the border they are scaled up to the pixels that exist.

    Args:
        size: side of the window in pixels, odd; the paper has 9.
        sigma: standard deviation of the Gaussian in pixels. The paper does not print it.
        epsilon: smallest divisor, for images without any contrast.
    """

    window: Tensor

    def __init__(self, size: int = 9, sigma: float = 2.0, epsilon: float = 1e-4) -> None:
        super().__init__()
        self.size, self.epsilon = size, epsilon
        offsets = torch.arange(size, dtype=torch.float32) - size // 2
        line = torch.exp(-offsets.square() / (2 * sigma**2))
        self.register_buffer("window", torch.outer(line, line)[None, None], persistent=False)

    def _local_mean(self, x: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 1, H, W)`: the weighted mean around each pixel over all maps."""
        pad = self.size // 2
        weights = F.conv2d(torch.ones_like(x[:1, :1]), self.window, padding=pad)
        return F.conv2d(x.mean(1, keepdim=True), self.window, padding=pad) / weights

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self._local_mean(x)
        std = (self._local_mean(centred.square()) + self.epsilon**2).sqrt()
        return centred / torch.maximum(std, std.mean((2, 3), keepdim=True))

    def extra_repr(self) -> str:
        return f"size={self.size}, epsilon={self.epsilon}"
