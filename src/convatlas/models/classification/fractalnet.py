"""FractalNet: very deep without residuals, from the repetition of one expansion rule.

Larsson, Maire, Shakhnarovich, "FractalNet: Ultra-Deep Neural Networks without Residuals" (ICLR 2017). What the paper
leaves open follows the authors' published generator of Caffe definitions; the block is in `models/layers/fractal.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_image_size, require_positive, require_probability
from convatlas.models.layers.classifier import PooledClassifier
from convatlas.models.layers.fractal import FractalBlock, Kept, initialise_as_caffe, seeded_generator


class Paths(NamedTuple):
    """What one training batch computes."""

    kept: list[Kept]  # for every block, the columns that are let through
    column: int | None = None  # the one column that global drop-path uses, from 1; None without it


DROP_PATHS = ("none", "local", "global", "mixed")
STATISTICS = ("shared", "separate")
STEMS = ("none", "imagenet")
MAX_COLUMNS = 6


class FractalNet(PooledClassifier):
    """B fractal blocks of C columns and one linear layer; the paper counts the B * 2^(C-1) convolutions as layers.

    Drop-path is drawn once for a whole mini-batch, and what it leaves unused is not computed. `local`: every join drops
    each of its inputs with `drop_path_rate` and keeps at least one. `global`: one column is used throughout the net,
    each as likely as the others. `mixed`: either of the two, evenly.

    Args:
        columns: C, from 1 to 6.
        widths: channels of each block; their number is B.
        drop_path: `none`, `local`, `global` or `mixed`.
        drop_path_rate: probability that local drop-path drops an input of a join; the paper's is 0.15.
        statistics: of batch normalisation, for evaluation: `shared`, the paper's, are gathered over all that drop-path
            draws; `separate` has a second set for the batches of global drop-path, which `column` uses, while the whole
            net uses the first. It concerns `mixed` drop-path alone. A join of several columns varies less than one
            column does, so statistics of a mixture fit neither the whole net nor a column.
        dropout: probability of dropping a value in the last block, growing evenly from 0 in the first; the paper's 0.4
            stands for 0, 0.1, 0.2, 0.3, 0.4.
        affine: batch normalisation scales and shifts, and the convolutions have no biases, as most reimplementations
            have it. The authors' definition is the reverse.
        stem: `none`; or `imagenet`, the first layers of ResNet-34, which leave a quarter of the height and width, and
            no pooling after the last block, whose maps the classifier averages.
    """

    def __init__(
        self,
        *,
        columns: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 512, 512),
        drop_path: str = "none",
        drop_path_rate: float = 0.15,
        statistics: str = "shared",
        dropout: float = 0.0,
        affine: bool = False,
        stem: str = "none",
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self._check(columns, widths)
        require_choice("drop_path", drop_path, DROP_PATHS)
        require_probability("drop_path_rate", drop_path_rate)
        require_probability("dropout", dropout)
        require_choice("stem", stem, STEMS)
        require_choice("statistics", statistics, STATISTICS)
        if affine and statistics == "separate":
            raise ValueError("model.statistics=separate needs model.affine=false, or scale and shift would double too.")
        self.columns = columns
        self.drop_path, self.drop_path_rate = drop_path, drop_path_rate
        self.stem, channels = self._stem(stem, in_channels)
        separate = statistics == "separate" and drop_path == "mixed"
        self.blocks = nn.ModuleList()
        for index, width in enumerate(widths):
            last = index == len(widths) - 1
            pools = 0 if stem == "imagenet" and last else 1
            rate = dropout * index / max(1, len(widths) - 1)
            self.blocks.append(
                FractalBlock(channels, width, columns, pools=pools, dropout=rate, affine=affine, separate=separate)
            )
            channels = width
        self.classifier = nn.Linear(channels, num_classes)
        # Every halving must leave a pixel; the stem halves twice and spares the last block's pooling.
        self.smallest_image = 2 ** (len(widths) + (1 if stem == "imagenet" else 0))
        self._seed: int | None = None
        self._computed = 1.0
        initialise_as_caffe(self)

    @staticmethod
    def _check(columns: int, widths: tuple[int, ...]) -> None:
        if not 1 <= columns <= MAX_COLUMNS:
            raise ValueError(
                f"model.columns={columns} must be from 1 to {MAX_COLUMNS}; a block has 2^columns - 1 convolutions."
            )
        if not widths:
            raise ValueError("model.widths=[] must have at least one width, the channels of one block.")
        for width in widths:
            require_positive("widths", width)

    @staticmethod
    def _stem(stem: str, in_channels: int) -> tuple[nn.Sequential, int]:
        if stem == "none":
            return nn.Sequential(), in_channels
        convolution = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)), 64

    @property
    def leaves_gradients_out(self) -> bool:
        drops = self.drop_path in {"global", "mixed"} or (self.drop_path == "local" and self.drop_path_rate > 0)
        return drops and self.columns > 1

    def begin_step(self, step: int, steps: int, seed: int) -> None:
        """Seed the draws of one training batch; without it torch's own generator draws."""
        self._seed = seed

    def step_figures(self) -> dict[str, float]:
        return {"convolutions_computed": self._computed}

    def draw_paths(self) -> Paths:
        """Draw what one training batch computes; after `begin_step` equal calls draw equally."""
        generator = seeded_generator(self._seed)
        kind = self.drop_path
        if kind == "mixed":
            kind = "local" if torch.rand(1, generator=generator, device="cpu").item() < 0.5 else "global"
        blocks = self._blocks()
        if kind == "local":
            return Paths([block.draw_local(self.drop_path_rate, generator) for block in blocks])
        if kind == "global":
            column = int(torch.randint(1, self.columns + 1, (1,), generator=generator, device="cpu"))
            return Paths([block.one_column(column) for block in blocks], column)
        return self._all_paths()

    def _all_paths(self) -> Paths:
        return Paths([block.everything() for block in self._blocks()])

    def _count(self, paths: Paths) -> None:
        pairs = zip(self._blocks(), paths.kept, strict=True)
        computed = sum(len(block.convolutions_behind(kept)) for block, kept in pairs)
        self._computed = computed / (len(self.blocks) * (2**self.columns - 1))

    def _blocks(self) -> list[FractalBlock]:
        return [block for block in self.blocks if isinstance(block, FractalBlock)]

    def column(self, number: int) -> nn.Sequential:
        """Return one column as a plain net that shares the weights and its running statistics.

        Args:
            number: from 1, the shallowest, with one convolution a block, to `columns`, with 2^(columns-1).
        """
        if not 1 <= number <= self.columns:
            raise ValueError(f"column={number}: this net has the columns 1 to {self.columns}.")
        chain = [module for block in self._blocks() for module in block.chain(number)]
        net = nn.Sequential(*self.stem, *chain, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.classifier)
        return net.train(self.training)

    def deepest_column(self) -> nn.Sequential:
        return self.column(self.columns)

    def parts(self) -> dict[str, nn.Module]:
        return {f"column_{number}": self.column(number) for number in range(1, self.columns + 1)}

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, widths[-1], H/2^B, W/2^B)`; behind the ImageNet stem H/2^(B+1), and W likewise."""
        require_image_size(images, self.smallest_image, "this net")
        paths = self.draw_paths() if self.training else self._all_paths()
        if self.training:
            self._count(paths)
        x = self.stem(images)
        for block, kept in zip(self.blocks, paths.kept, strict=True):
            x = block(x, kept, alone=paths.column is not None)
        return x
