"""Fractal of FractalNet, and freeze-drop-path, which trains its branches in turn.

Smith, Topin, "Deep Convolutional Neural Network Design Patterns" (2016, arXiv 1611.00847). The wiring and the layer
follow the authors' published Caffe files; the fractal block is in `models/layers/fractal.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from convatlas.models.checks import (
    require_choice,
    require_exact_size,
    require_positive,
    require_probability,
    require_width,
)
from convatlas.models.layers.fractal import FractalBlock, LocalDropPath, initialise_as_caffe, join

TRAININGS = ("joint", "freeze_drop_path")
SCHEDULES = ("stochastic", "deterministic")
PROPORTIONS = ("squares", "equal", "reversed_squares")

HALVINGS = 4
"""Between the image and the last join, by every way."""

MAX_BASE = 40.0
"""What is squared or cubed is cut off here: 40^3 is the largest cube of a whole number that float16 can hold."""


def freeze_drop_path(branches: Sequence[Callable[[], Tensor]], active: int) -> Tensor:
    """Sum the branches 0 to `active`, from the simplest on, of which the last alone is trained.

    Those below are frozen: they contribute, and are computed without a graph, so that they receive no gradient at all.
    Those above are dropped, and not computed.
    """
    with torch.no_grad():
        frozen = [branch() for branch in branches[:active]]
    return sum(frozen, start=branches[active]())


def branch_weights(branches: int, proportions: str) -> list[int]:
    """Return what the training time of each branch, from the simplest, is proportional to; one of `PROPORTIONS`."""
    if proportions == "equal":
        return [1] * branches
    squares = [number**2 for number in range(1, branches + 1)]
    return squares if proportions == "squares" else squares[::-1]


class FreezeSchedule:
    """Which branch is active in which training step.

    Args:
        schedule: `stochastic`, drawn for each mini-batch; or `deterministic`, one after another from the simplest, in
            consecutive intervals of a cycle that repeats.
        proportions: what a branch's probability, or its part of a cycle, is proportional to: `squares` of its number
            from 1, `equal`, or `reversed_squares`, the same squares from the most complex branch down.
        cycle: steps of a cycle; None is the whole training, each branch in one go.
    """

    def __init__(self, branches: int, schedule: str, proportions: str, cycle: int | None) -> None:
        require_choice("freeze_schedule", schedule, SCHEDULES)
        require_choice("freeze_proportions", proportions, PROPORTIONS)
        if cycle is not None:
            require_positive("freeze_cycle", cycle)
        self.stochastic = schedule == "stochastic"
        self.weights = branch_weights(branches, proportions)
        self.cycle = cycle

    def active(self, step: int, steps: int, generator: torch.Generator | None) -> int:
        """Return the active branch of a step of `steps`: a function of the step, or of the generator's seed alone."""
        if self.stochastic:
            weights = torch.tensor(self.weights, dtype=torch.float64, device="cpu")
            return int(torch.multinomial(weights, 1, generator=generator))
        cycle = self.cycle or steps
        position, end = step % cycle * sum(self.weights), 0
        for branch, weight in enumerate(self.weights):
            end += weight * cycle
            if position < end:
                return branch
        raise AssertionError("the intervals fill the cycle")


class FractalOfFractalNet(nn.Module):
    """Fractal blocks that are wired as a fractal themselves, and one linear layer.

        a    image -> F(64), halved -> F(128), halved
        b    image -> F(128), halved twice
        mid  mean of a and b
        c    mid -> F(256), halved -> F(512), halved
        d    mid -> F(512), halved twice
        e    image -> F(512), halved four times
        out  joins c, d and e

    F(w) is a fractal block of width w; it halves every column by itself, before its last join. The authors' four nets
    are two ways of training, each without and with the powers of a Taylor series (`model.taylor`):

        joint              FoF      mean of e, d, c           FoF-TSN  mean of e, d^2, c^3
        freeze_drop_path   SBN-FDP  e + mean of d and c       TSN-FDP  e + (mean of d and c)^2

    In the second way branch 0 is e, and branch 1, with the shared a and b, corrects it; see `freeze_drop_path`.
    Evaluation sums both, also before a deterministic schedule has reached branch 1. Frozen means untouched: parameters
    without a gradient are skipped by the optimiser, also by its momentum and weight decay, which go on in the authors'
    Caffe. In the authors' files a batch normalisation without scale and shift follows this sum; here each of the two
    sums has its own running statistics, so that those of evaluation are of the sum that is evaluated.

    Powers are taken of outputs without a bound. They are computed in float32, also under mixed precision, of values
    cut off at 40, far above what batch normalisation leaves in a net that does not diverge.

    Args:
        taylor: square and cube branches as above.
        width: factor on all channels, 1 in the paper.
        columns: columns of every fractal block, from 1 to 6; the paper's is 3.
        drop_path_rate: probability that a join drops one of its inputs, drawn for a mini-batch as a whole, for all
            joins but that of c and d under `freeze_drop_path`; at least one is kept. The authors' is 0.15.
        dropout: probability of dropping a value in the blocks of a (two), b, c (two), d and e: seven in this order.
        freeze_schedule, freeze_proportions, freeze_cycle: see `FreezeSchedule`; used by `freeze_drop_path` alone.
        image_size: side of the images in pixels, at least 16; it decides the size of the linear layer.
    """

    def __init__(
        self,
        *,
        training: str = "joint",
        taylor: bool = False,
        width: float = 1.0,
        columns: int = 3,
        drop_path_rate: float = 0.0,
        dropout: tuple[float, ...] = (0.0,) * 7,
        freeze_schedule: str = "stochastic",
        freeze_proportions: str = "squares",
        freeze_cycle: int | None = None,
        image_size: int = 32,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("training", training, TRAININGS)
        require_width(width)
        self._check(columns, dropout, image_size)
        require_probability("drop_path_rate", drop_path_rate)
        self.freezes = training == "freeze_drop_path"
        self.taylor = taylor
        self.drop_path_rate = drop_path_rate
        self.schedule = FreezeSchedule(2, freeze_schedule, freeze_proportions, freeze_cycle)
        self.image_size = image_size

        w64, w128, w256, w512 = (max(1, round(width * channels)) for channels in (64, 128, 256, 512))
        self.a1 = FractalBlock(in_channels, w64, columns, pools=1, dropout=dropout[0])
        self.a2 = FractalBlock(w64, w128, columns, pools=1, dropout=dropout[1])
        self.b = FractalBlock(in_channels, w128, columns, pools=2, dropout=dropout[2])
        self.c1 = FractalBlock(w128, w256, columns, pools=1, dropout=dropout[3])
        self.c2 = FractalBlock(w256, w512, columns, pools=1, dropout=dropout[4])
        self.d = FractalBlock(w128, w512, columns, pools=2, dropout=dropout[5])
        self.e = FractalBlock(in_channels, w512, columns, pools=HALVINGS, dropout=dropout[6])
        # One set of running statistics for each sum of freeze-drop-path; without parameters.
        self.norms = nn.ModuleList(nn.BatchNorm2d(w512, affine=False) for _ in range(2 if self.freezes else 0))
        self.classifier = nn.Linear(w512 * (image_size // 2**HALVINGS) ** 2, num_classes)
        self.convolutions = 7 * (2**columns - 1)

        self._step, self._steps = 0, 1
        self._seed: int | None = None
        self._active = len(self.norms) - 1
        self._computed = self.convolutions
        initialise_as_caffe(self)

    @staticmethod
    def _check(columns: int, dropout: tuple[float, ...], image_size: int) -> None:
        if not 1 <= columns <= 6:
            raise ValueError(f"model.columns={columns} must be from 1 to 6; a block has 2^columns - 1 convolutions.")
        if len(dropout) != 7:
            raise ValueError(
                f"model.dropout={list(dropout)} must be seven rates: of a's two blocks, b, c's two blocks, d and e."
            )
        for rate in dropout:
            require_probability("dropout", rate)
        if image_size < 2**HALVINGS:
            raise ValueError(f"model.image_size={image_size} must be at least {2**HALVINGS}: it is halved four times.")

    @property
    def leaves_gradients_out(self) -> bool:
        return self.freezes or self.drop_path_rate > 0

    def begin_step(self, step: int, steps: int, seed: int) -> None:
        """Prepare one training batch; without it torch's generator draws, and a deterministic schedule stands at 0."""
        self._step, self._steps, self._seed = step, steps, seed

    def step_figures(self) -> dict[str, float]:
        """Return what the last training batch did.

        `convolutions_computed`: share of the convolutions, from 0 to 1; under freeze-drop-path also `stage`: the
        active branch, 0 or 1.
        """
        figures = {"convolutions_computed": self._computed / self.convolutions}
        return figures | {"stage": float(self._active)} if self.freezes else figures

    def parts(self) -> dict[str, nn.Module]:
        """Return `branch_0`, the net of the first stage of freeze-drop-path, which shares the weights; else nothing.

        Branches that were trained jointly have no classifier of their own.
        """
        if not self.freezes:
            return {}
        return {"branch_0": nn.Sequential(self.e, self.norms[0], nn.Flatten(), self.classifier).train(self.training)}

    def _power(self, x: Tensor, exponent: int) -> Tensor:
        if not self.taylor:
            return x
        base = x.float().clamp(max=MAX_BASE)
        return base.square() if exponent == 2 else base.square() * base

    def _middle(self, images: Tensor, paths: LocalDropPath) -> Tensor:
        """Join a and b, of which only those are computed that the join lets through."""
        kept, inputs = paths.survivors(2), []
        if 0 in kept:
            inputs.append(paths.run(self.a2, paths.run(self.a1, images)))
        if 1 in kept:
            inputs.append(paths.run(self.b, images))
        return join(inputs)

    def _all_joined(self, images: Tensor, paths: LocalDropPath) -> Tensor:
        """Join e, d and c, of which only those are computed that the join lets through, and what they need."""
        kept, inputs = paths.survivors(3), []
        if 0 in kept:
            inputs.append(paths.run(self.e, images))
        if 1 in kept or 2 in kept:
            middle = self._middle(images, paths)
            if 1 in kept:
                inputs.append(self._power(paths.run(self.d, middle), 2))
            if 2 in kept:
                inputs.append(self._power(paths.run(self.c2, paths.run(self.c1, middle)), 3))
        return join(inputs)

    def _correction(self, images: Tensor, paths: LocalDropPath) -> Tensor:
        """Compute branch 1 of freeze-drop-path, whose own join drops nothing."""
        middle = self._middle(images, paths)
        c = paths.run(self.c2, paths.run(self.c1, middle))
        return self._power(join([paths.run(self.d, middle), c]), 2)

    def _in_stages(self, images: Tensor, paths: LocalDropPath) -> Tensor:
        """Sum both branches, in training only those up to the active one."""
        branches = [partial(paths.run, self.e, images), partial(self._correction, images, paths)]
        if not self.training:
            return branches[0]() + branches[1]()
        self._active = self.schedule.active(self._step, self._steps, paths.generator)
        return freeze_drop_path(branches, self._active)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, S, S) -> (B, 512 * width, S/16, S/16)`: the last join, under `freeze_drop_path` before its BN."""
        require_exact_size(images, self.image_size)
        paths = LocalDropPath(self.drop_path_rate if self.training else 0.0, self._seed if self.training else None)
        features = self._in_stages(images, paths) if self.freezes else self._all_joined(images, paths)
        if self.training:
            self._computed = paths.computed
        return features

    def forward(self, images: Tensor) -> Tensor:
        features = self.forward_features(images)
        if self.freezes:
            features = self.norms[self._active if self.training else -1](features)
        return self.classifier(features.flatten(1))
