"""The fractal block, its joins and drop-path.

Larsson, Maire, Shakhnarovich, "FractalNet: Ultra-Deep Neural Networks without Residuals" (ICLR 2017), sections 2 and 3.
What the paper leaves open (biases, normalisation without scale and shift, pooling before the last join) follows the
authors' published Caffe definition.

f_1(z) = conv(z); f_{C+1}(z) joins f_C(f_C(z)) and conv(z). Unrolled, f_C has C columns, counted here from 1, the
shallowest: column k is a chain of 2^(k-1) convolutions, and all columns are equally high. Wherever convolutions of
several columns end on the same row there is one join of them all, the mean of its inputs, each with equal weight; it is
what every convolution that begins there takes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Kept = Mapping[int, Sequence[int]]
"""Row of a fractal block -> the columns whose outputs are let through there; see `FractalBlock.ending_at`."""


def seeded_generator(seed: int | None) -> torch.Generator | None:
    """Return a CPU generator, for draws that are the same on all processes; None is torch's own."""
    return None if seed is None else torch.Generator().manual_seed(seed)


def draw_survivors(inputs: int, rate: float, generator: torch.Generator | None) -> list[int]:
    """Draw which of a join's inputs local drop-path lets through, in order.

    Each is dropped with probability `rate`; if that drops all, one of them, each as likely as the others, is revived.
    It is drawn on the CPU, so that a GPU need not be synchronised, and once for the mini-batch.
    """
    # The device is named because nets are also built and run inside `torch.device("meta")`.
    drawn: list[float] = torch.rand(inputs, generator=generator, device="cpu").tolist()
    survivors = [i for i, value in enumerate(drawn) if value >= rate]
    return survivors or [int(torch.randint(inputs, (1,), generator=generator, device="cpu"))]


def join(inputs: Sequence[Tensor]) -> Tensor:
    """Return the element-wise mean of at least one tensor of equal shapes; of a single one, itself."""
    total = inputs[0]
    for other in inputs[1:]:
        total = total + other
    return total if len(inputs) == 1 else total / len(inputs)


def initialise_as_caffe(net: nn.Module) -> None:
    """Initialise convolutions and linear layers as Caffe's `xavier` filler does, with biases of zero.

    The filler divides by the number of inputs alone, where Glorot and Bengio take the mean of inputs and outputs:
    uniform in +-sqrt(3 / inputs).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class FractalConv(nn.Module):
    """3x3 convolution, dropout, BN, ReLU; `(B, in, H, W) -> (B, out, H, W)`.

    Args:
        dropout: probability of dropping a value, before normalisation, where the authors have it.
        affine: BN scales and shifts, and the convolution has no biases. The published definition is the reverse.
        separate: a BN of its own for the batches in which a column is used alone; without scale and shift the two
            differ in nothing but their running statistics, so `affine` must be false.
    """

    def __init__(
        self, in_channels: int, out_channels: int, dropout: float = 0.0, *, affine: bool = False, separate: bool = False
    ) -> None:
        super().__init__()
        assert not (affine and separate)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not affine)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)
        self.norm_alone = nn.BatchNorm2d(out_channels, affine=False) if separate else None
        self.relu = nn.ReLU()

    def chain(self, *, alone: bool) -> list[nn.Module]:
        norm = self.norm if self.norm_alone is None or not alone else self.norm_alone
        return [self.conv, self.dropout, norm, self.relu]

    def forward(self, x: Tensor, *, alone: bool = False) -> Tensor:
        """Compute the layers of `chain`."""
        for layer in self.chain(alone=alone):
            x = layer(x)
        return x


class FractalBlock(nn.Module):
    """f_C; `(B, in, H, W) -> (B, out, H / 2^pools, W / 2^pools)`.

    The maximum is taken of every column by itself, before the last join: it does not commute with the mean.

    Args:
        columns: C, at least 1; there are 2^C - 1 convolutions, each of `out_channels`.
        pools: times that 2x2 max pooling halves every column's output.
        options: of each `FractalConv`.
    """

    def __init__(self, in_channels: int, out_channels: int, columns: int, *, pools: int = 1, **options: Any) -> None:
        super().__init__()
        self.columns = nn.ModuleList()
        for column in range(1, columns + 1):
            inputs = [in_channels] + [out_channels] * (2 ** (column - 1) - 1)
            self.columns.append(nn.ModuleList(FractalConv(channels, out_channels, **options) for channels in inputs))
        self.rows = 2 ** (columns - 1)
        self.pools = pools
        self.pool = nn.MaxPool2d(2)

    def height(self, column: int) -> int:
        """Return how many rows one convolution of `column` reaches over."""
        return self.rows // 2 ** (column - 1)

    def ending_at(self, row: int) -> tuple[int, ...]:
        """Return the columns that have a convolution ending at `row`, 1 to `rows`: always the n deepest."""
        return tuple(k for k in range(1, len(self.columns) + 1) if row % self.height(k) == 0)

    def joins(self) -> dict[int, tuple[int, ...]]:
        """Return the columns that meet in each join, by row."""
        return {row: self.ending_at(row) for row in range(1, self.rows + 1) if len(self.ending_at(row)) > 1}

    def everything(self) -> dict[int, tuple[int, ...]]:
        """Let all through."""
        return {row: self.ending_at(row) for row in range(1, self.rows + 1)}

    def one_column(self, column: int) -> dict[int, tuple[int, ...]]:
        """Let one column alone through, as global drop-path does."""
        return {row: (column,) if column in self.ending_at(row) else () for row in range(1, self.rows + 1)}

    def draw_local(self, rate: float, generator: torch.Generator | None) -> dict[int, tuple[int, ...]]:
        """Draw for every join what local drop-path lets through, whether something later uses that join or not."""
        kept = self.everything()
        for row, columns in self.joins().items():
            kept[row] = tuple(columns[i] for i in draw_survivors(len(columns), rate, generator))
        return kept

    def convolutions_behind(self, kept: Kept) -> list[tuple[int, int]]:
        """List the (row, column) of the convolutions that the block's output depends on, in order of computation."""
        needed = {self.rows}
        found = []
        for row in range(self.rows, 0, -1):
            if row in needed:
                found += [(row, column) for column in reversed(kept[row])]
                needed |= {row - self.height(column) for column in kept[row]}
        return found[::-1]

    def chain(self, column: int) -> list[nn.Module]:
        layers = [layer for convolution in self._convolutions(column) for layer in convolution.chain(alone=True)]
        return [*layers, *[self.pool] * self.pools]

    def _convolutions(self, column: int) -> list[FractalConv]:
        convolutions = self.columns[column - 1]
        assert isinstance(convolutions, nn.ModuleList)
        return [convolution for convolution in convolutions if isinstance(convolution, FractalConv)]

    def forward(self, x: Tensor, kept: Kept | None = None, *, alone: bool = False) -> Tensor:
        """Compute the columns that `kept` lets through, all without it, and nothing that the output does not use.

        Args:
            kept: by row, as `everything`, `one_column` or `draw_local` return it.
            alone: the column of `one_column` is used alone throughout the net; see `FractalConv`.
        """
        arriving: dict[int, list[Tensor]] = {0: [x]}
        values: dict[int, Tensor] = {}
        for row, column in self.convolutions_behind(self.everything() if kept is None else kept):
            height = self.height(column)
            start = row - height
            if start not in values:
                values[start] = join(arriving.pop(start))
            out = self._convolutions(column)[start // height](values[start], alone=alone)
            if row == self.rows:
                for _ in range(self.pools):
                    out = self.pool(out)
            arriving.setdefault(row, []).append(out)
        return join(arriving[self.rows])


class LocalDropPath:
    """Local drop-path over fractal blocks and joins of any wiring, for one mini-batch.

    `rate` is the probability that a join drops one of its inputs, 0 in evaluation; `seed` is None for torch's own
    generator; `computed` counts the convolutions that were computed so far.
    """

    def __init__(self, rate: float, seed: int | None) -> None:
        self.rate = rate
        self.generator = seeded_generator(seed)
        self.computed = 0

    def survivors(self, inputs: int) -> list[int]:
        return draw_survivors(inputs, self.rate, self.generator) if self.rate > 0 else list(range(inputs))

    def run(self, block: FractalBlock, x: Tensor) -> Tensor:
        kept = block.draw_local(self.rate, self.generator) if self.rate > 0 else block.everything()
        self.computed += len(block.convolutions_behind(kept))
        return block(x, kept)
