"""Compound scaling: the best way to divide twice the computation between depth, width and resolution, then more of it.

Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML 2019), section 3.3 (equation
3). Depth grows with alpha^phi, width with beta^phi and resolution with gamma^phi, where alpha * beta^2 * gamma^2 is
about 2. The grid is searched at phi = 1 on a small baseline.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from convatlas.core.seeds import mixed_seed
from convatlas.models.classification.searched import searched
from convatlas.search.budget import macs_of
from convatlas.search.config import CompoundScaling
from convatlas.search.proxy import train_proxy
from convatlas.search.strategy import Context, Row, Strategy, seeded

PROXY, STREAM = 31, 32  # streams of random numbers


@dataclass(frozen=True)
class Coefficients:
    """Factors on the baseline's depth, width and resolution."""

    alpha: float
    beta: float
    gamma: float

    @property
    def cost(self) -> float:
        return self.alpha * self.beta**2 * self.gamma**2

    def to_the(self, phi: float) -> Coefficients:
        return Coefficients(self.alpha**phi, self.beta**phi, self.gamma**phi)

    def __str__(self) -> str:
        return f"alpha {self.alpha:.2f} beta {self.beta:.2f} gamma {self.gamma:.2f}"


def grid(step: float, tolerance: float, largest: float = 2.0) -> list[Coefficients]:
    """Return all coefficients from 1 to `largest` in steps, whose cost differs from 2 by less than `tolerance`."""
    count = round((largest - 1) / step)
    values = [round(1 + number * step, 10) for number in range(count + 1)]
    everything = (Coefficients(a, b, c) for a in values for b in values for c in values)
    return [each for each in everything if abs(each.cost - 2) < tolerance]


class CompoundSearch(Strategy):
    """Proxy trainings of the grid's nets; the best is scaled on, and compared with other ways to spend as much.

    Small nets are rounded a good deal, so that several coefficients make the same net: that is trained once.
    """

    name = "compound"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.run.search.strategy
        assert isinstance(config, CompoundScaling)
        self.config = config
        self.side = context.data.config.image_size
        seen: dict[str, Coefficients] = {}
        for coefficients in grid(config.step, config.tolerance, config.largest):
            seen.setdefault(self._shape(coefficients), coefficients)
        self.candidates = list(seen.values())

    @property
    def steps(self) -> int:
        return len(self.candidates)

    def advance(self, step: int) -> list[Row]:
        coefficients, proxy = self.candidates[step], self.context.run.search.proxy
        seed = seeded(self.context.run.seed, PROXY)
        net = self._build(coefficients)
        judged = train_proxy(
            net, self.context.data, proxy, seed=seed, device=self.context.device, image_size=self._side(coefficients)
        )
        self.spent += judged.spent
        # Accuracies of a small held-out part are often equal; the loss then decides.
        reward = judged.accuracy - 1e-3 * min(judged.loss, 1.0)
        self.keep(reward, (step,))
        figures = {"accuracy": judged.accuracy, "loss": judged.loss, "macs": judged.macs}
        return [{"architecture": str(coefficients), "reward": reward, **figures, **asdict(coefficients)}]

    def architectures(self) -> dict[str, dict[str, Any]]:
        """Return the baseline, and four nets of equal cost: compound, depth, width and resolution, and one at random.

        The cost is that of the compound net, in measured multiply-adds; each other way gets the coefficient that comes
        nearest to it.
        """
        assert self.best is not None
        phi = self.config.phi
        best = self.candidates[self.best[1][0]]
        compound = best.to_the(phi)
        seed = mixed_seed(self.context.run.seed, STREAM)
        drawn = int(torch.randint(len(self.candidates), (), generator=torch.Generator().manual_seed(seed)))
        ways: dict[str, Callable[[float], Coefficients]] = {
            "depth_only": lambda factor: Coefficients(factor, 1, 1),
            "width_only": lambda factor: Coefficients(1, factor, 1),
            "resolution_only": lambda factor: Coefficients(1, 1, factor),
            "random_coefficients": self.candidates[drawn].to_the,
        }
        found = {"compound": self._file(compound), "baseline": self._file(Coefficients(1, 1, 1))}
        target = self._macs(compound)
        for name, way in ways.items():
            found[name] = self._file(self._nearest(way, target))
        return found

    def _nearest(self, way: Callable[[float], Coefficients], target: int) -> Coefficients:
        """Return the coefficients of one way whose net costs nearest to `target`; of equals the smallest."""
        factors = [round(0.9 + 0.05 * number, 2) for number in range(round(20 * (2.0**self.config.phi * 1.5 - 0.9)))]
        place = bisect_left(factors, target, key=lambda factor: self._macs(way(factor)))  # the cost never falls
        around = factors[max(0, place - 1) : place + 1]
        return min((way(factor) for factor in around), key=lambda each: abs(self._macs(each) - target))

    def _side(self, coefficients: Coefficients) -> int:
        return round(self.side * coefficients.gamma)

    def _net(self, coefficients: Coefficients) -> dict[str, Any]:
        baseline = dict(self.config.baseline)
        width = round(baseline.pop("width") * coefficients.beta, 6)
        depth = round(baseline.pop("depth") * coefficients.alpha, 6)
        return {**baseline, "width": width, "depth": depth}

    def _build(self, coefficients: Coefficients) -> nn.Module:
        classes, channels = self.context.shape
        architecture = {"family": "efficientnet", "net": self._net(coefficients)}
        return searched(architecture, num_classes=classes, in_channels=channels)

    def _macs(self, coefficients: Coefficients) -> int:
        with torch.device("meta"):
            return macs_of(self._build(coefficients), self.context.data.one_image(self._side(coefficients)))

    def _shape(self, coefficients: Coefficients) -> str:
        with torch.device("meta"):
            tensors = [tuple(p.shape) for p in self._build(coefficients).parameters()]
        return f"{self._side(coefficients)} {tensors}"

    def _file(self, coefficients: Coefficients) -> dict[str, Any]:
        side = self._side(coefficients)
        found: dict[str, Any] = {name: round(value, 4) for name, value in asdict(coefficients).items()}
        found["train_with"] = f"data.image_size={side}"
        return {"family": "efficientnet", "image_size": side, "found": found, "net": self._net(coefficients)}
