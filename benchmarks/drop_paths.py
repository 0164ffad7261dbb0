"""What leaving paths out of a training step saves: `python benchmarks/drop_paths.py`.

Times forward, backward and SGD steps of nets that drop paths, in turn in one process, against the same net that drops
none. Steps differ by what they draw: a figure is the mean over `--steps` steps, and of these the median over
`--repeats`. Saved activations are what autograd keeps for the backward pass, of the same draws. Aim: stochastic depth
with linear survival down to 0.5 takes at most 0.80 of the time; 0.75 is its share of the blocks. Masking saves nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import nn

from convatlas.models.classification.fractal_of_fractalnet import FractalOfFractalNet
from convatlas.models.classification.fractalnet import FractalNet
from convatlas.models.classification.stochastic_depth import BasicBlock, StochasticDepthResNet
from convatlas.models.costs import activation_bytes, on_meta_device
from convatlas.models.interfaces import FollowsTraining, HasFigures
from convatlas.models.layers.stochastic_depth import survival_probabilities


class Case(NamedTuple):
    """One net to time; the first case of its group is what the others of the group are compared with."""

    group: str
    name: str
    build: Callable[[], nn.Module]


def constant_depth() -> StochasticDepthResNet:
    """ResNet-110 that computes every block."""
    return StochasticDepthResNet(survival=1.0)


def masked_by_timm() -> StochasticDepthResNet:
    """ResNet-110 whose branches are computed and then masked for single images, at the rates of linear survival."""
    net = constant_depth()
    blocks = [m for m in net.modules() if isinstance(m, BasicBlock)]
    for block, survival in zip(blocks, survival_probabilities(0.5, "linear", len(blocks)), strict=True):
        block.branch.append(DropPath(1 - survival))
    return net


CASES = [
    Case("ResNet-110", "constant depth", constant_depth),
    Case("ResNet-110", "stochastic depth, linear 0.5", StochasticDepthResNet),
    Case("ResNet-110", "stochastic depth, uniform 0.5", lambda: StochasticDepthResNet(schedule="uniform")),
    Case("ResNet-110", "timm's DropPath, linear 0.5", masked_by_timm),
    *(
        Case("FractalNet", name, partial(FractalNet, widths=(16, 32, 64, 128, 128), drop_path=drop_path))
        for name, drop_path in (
            ("no drop-path", "none"),
            ("local drop-path", "local"),
            ("global drop-path", "global"),
            ("mixed drop-path", "mixed"),
        )
    ),
    Case("Fractal of FractalNet, 1/8", "joint", partial(FractalOfFractalNet, width=1 / 8)),
    Case(
        "Fractal of FractalNet, 1/8",
        "freeze-drop-path",
        partial(FractalOfFractalNet, width=1 / 8, training="freeze_drop_path"),
    ),
]


class Measured(NamedTuple):
    """Means over the steps of one repeat."""

    wall: float
    processor: float
    active: float


class Trainee:
    """A net with its optimiser, trained on noise."""

    def __init__(self, case: Case, batch_size: int) -> None:
        torch.manual_seed(0)
        self.case = case
        self.net = case.build().train()
        self.images, self.labels = torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step(self, number: int) -> Measured:
        """Time one step; `number` decides what is drawn."""
        begin(self.net, number)
        wall, processor = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.net(self.images), self.labels).backward()
        self.optimizer.step()
        return Measured(time.perf_counter() - wall, time.process_time() - processor, active(self.net))


def begin(net: nn.Module, number: int) -> None:
    """Seed what a step draws."""
    torch.manual_seed(number)
    if isinstance(net, FollowsTraining):
        net.begin_step(number, number + 1, seed=number)


def active(net: nn.Module) -> float:
    """Return the share of the blocks, or of the convolutions, that the last step computed."""
    figures = net.step_figures() if isinstance(net, HasFigures) else {}
    return figures.get("active_blocks", figures.get("convolutions_computed", 1.0))


def saved_activations(case: Case, batch_size: int, steps: int) -> list[float]:
    """Return the megabytes that each of the steps keeps for its backward pass; needs neither time nor storage."""
    net = on_meta_device(case.build).train()
    megabytes = []
    for number in range(steps):
        begin(net, number)
        megabytes.append(activation_bytes(net, torch.zeros(batch_size, 3, 32, 32, device="meta")) / 1e6)
    return megabytes


def timed(cases: list[Case], batch_size: int, steps: int, repeats: int) -> list[list[Measured]]:
    """Return each case's means, repeat by repeat; the cases take turns at every step."""
    trainees = [Trainee(case, batch_size) for case in cases]
    for trainee in trainees:
        trainee.step(0)
    found: list[list[Measured]] = [[] for _ in cases]
    for repeat in range(repeats):
        taken: list[list[Measured]] = [[] for _ in cases]
        for number in range(repeat * steps, (repeat + 1) * steps):
            for trainee, measured in zip(trainees, taken, strict=True):
                measured.append(trainee.step(number))
        for means, measured in zip(found, taken, strict=True):
            means.append(Measured(*(statistics.fmean(column) for column in zip(*measured, strict=True))))
    return found


def ratio(measured: list[Measured], first: list[Measured], column: str) -> float:
    """Return the median over repeats of a mean against the first case's in the same repeat."""
    return statistics.median(getattr(a, column) / getattr(b, column) for a, b in zip(measured, first, strict=True))


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="steps of one mean")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="groups of nets whose name contains this")
    parser.add_argument("--quick", action="store_true", help="one step of batches of 2")
    options = parser.parse_args()
    if options.quick:
        options.batch_size, options.steps, options.repeats = 2, 1, 1
    torch.set_num_threads(options.threads)
    columns = f"{'wall':>8} {'ratio':>6} {'processor':>10} {'ratio':>6} {'active':>7} {'saved, mean':>12} {'most':>9}"
    print(" " * 44, columns)
    for group in dict.fromkeys(case.group for case in CASES if options.only in case.group):
        cases = [case for case in CASES if case.group == group]
        found = timed(cases, options.batch_size, options.steps, options.repeats)
        for case, measured in zip(cases, found, strict=True):
            wall, processor, blocks = (statistics.median(column) for column in zip(*measured, strict=True))
            megabytes = saved_activations(case, options.batch_size, options.steps * options.repeats)
            print(
                f"{group + ', ' + case.name:<44} {wall:6.3f} s {ratio(measured, found[0], 'wall'):6.2f} "
                f"{processor:8.3f} s {ratio(measured, found[0], 'processor'):6.2f} {blocks:7.2f} "
                f"{statistics.fmean(megabytes):9.1f} MB {max(megabytes):6.1f} MB"
            )


if __name__ == "__main__":
    main()
