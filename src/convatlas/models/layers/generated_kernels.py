"""Convolution kernels that a small linear net makes of learnt embeddings: the static hypernetwork.

Ha, Dai, Le, "HyperNetworks" (arXiv 1609.09106), section 3.1, equations 2 and 3. Shapes in capitals: E embeddings, N_z
their size, N_in and N_out the channels of a basic kernel, f its side, d the hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KernelShape(NamedTuple):
    """Channels of one layer's kernel; all kernels of a net have one size."""

    out_channels: int
    in_channels: int


class KernelGenerator(nn.Module):
    """Two linear maps from an embedding to a basic kernel; `(E, N_z) -> (E, N_out, N_in, f, f)`.

    Input channel i has a map of its own, a_i = W_i z + B_i. The second map, K_i = <W_out, a_i> + B_out, is the same for
    every i; K_i, of shape f x (N_out f), is the part of the kernel that sees input channel i. There is no non-linearity
    between the two; sharing the second is what saves weights.

    Args:
        embedding_size: N_z; the hidden size d is the same, as in the paper.
    """

    def __init__(self, channels: int = 16, kernel_size: int = 3, embedding_size: int = 64) -> None:
        super().__init__()
        self.channels, self.kernel_size, self.hidden_size = channels, kernel_size, embedding_size
        self.first = nn.Linear(embedding_size, channels * self.hidden_size)
        """W_i and B_i, one below the other."""
        self.second = nn.Linear(self.hidden_size, kernel_size * channels * kernel_size)
        """W_out and B_out."""
        self._initialise()

    def _initialise(self) -> None:
        """Make an embedding of length sqrt(N_z) a kernel of He's variance, 2 / (f^2 N_out)."""
        nn.init.normal_(self.first.weight, std=self.first.in_features**-0.5)
        fan_out = self.kernel_size**2 * self.channels
        nn.init.normal_(self.second.weight, std=(2 / (fan_out * self.hidden_size)) ** 0.5)
        nn.init.zeros_(self.first.bias)
        nn.init.zeros_(self.second.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        side = self.kernel_size
        hidden = self.first(embeddings).unflatten(1, (self.channels, self.hidden_size))
        slices = self.second(hidden).unflatten(2, (side, self.channels, side))  # (E, N_in, row, N_out, column)
        # A plain reshape to (E, N_out, N_in, f, f) fits too, as N_in = N_out, but puts the slices on the output axis.
        return slices.permute(0, 3, 1, 2, 4)


class GeneratedKernels(nn.Module):
    """The kernels of all layers, each put together of basic ones with an embedding each.

    A kernel from 32 to 64 channels is two rows (inputs) of four basic kernels (outputs). All embeddings go through the
    generator at once.

    Args:
        basic_channels: input and output channels of a basic kernel, 16 in the paper.
    """

    def __init__(
        self, shapes: Sequence[KernelShape], kernel_size: int = 3, embedding_size: int = 64, basic_channels: int = 16
    ) -> None:
        super().__init__()
        for channels in (channels for shape in shapes for channels in shape):
            if channels % basic_channels:
                raise ValueError(
                    f"model.basic_channels={basic_channels} does not divide a layer's {channels} channels; "
                    "choose a number that divides the channels of every layer."
                )
        self.shapes = tuple(shapes)
        self.tiles = [(out // basic_channels, into // basic_channels) for out, into in self.shapes]
        """Basic kernels of a layer along its output and its input channels."""
        self.generator = KernelGenerator(basic_channels, kernel_size, embedding_size)
        self.embeddings = nn.Parameter(torch.empty(sum(a * b for a, b in self.tiles), embedding_size))
        """`(E, N_z)`: layer by layer, in a layer row by row as in equation 3."""
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Give every layer's kernel He's variance for its own number of filters: 2 / (f^2 out_channels)."""
        directions = F.normalize(torch.randn_like(self.embeddings)) * self.embeddings.shape[1] ** 0.5
        parts = directions.split([a * b for a, b in self.tiles])
        self.embeddings.copy_(torch.cat([part * a**-0.5 for part, (a, _) in zip(parts, self.tiles, strict=True)]))

    def forward(self) -> list[Tensor]:
        """Return the kernels, layer by layer, `(out_channels, in_channels, f, f)`."""
        basic = self.generator(self.embeddings)
        parts = basic.split([a * b for a, b in self.tiles])
        # (in tile, out tile, N_out, N_in, row, column)
        grids = [part.unflatten(0, (into, out)) for part, (out, into) in zip(parts, self.tiles, strict=True)]
        return [grid.permute(1, 2, 0, 3, 4, 5).flatten(2, 3).flatten(0, 1) for grid in grids]


class LearntKernels(nn.Module):
    """The same kernels as weights of their own: what a hypernetwork is compared with."""

    def __init__(self, shapes: Sequence[KernelShape], kernel_size: int = 3) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.empty(*shape, kernel_size, kernel_size) for shape in shapes)
        for weight in self.weights:
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")

    def forward(self) -> list[Tensor]:
        """Return the kernels, layer by layer, `(out_channels, in_channels, f, f)`."""
        return list(self.weights)
