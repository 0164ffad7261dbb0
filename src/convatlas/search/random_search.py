"""Random search: nets drawn uniformly from the space, the baseline that every other search has to beat.

Li, Talwalkar, "Random Search and Reproducibility for Neural Architecture Search" (UAI 2019).
"""

import torch

from convatlas.core.seeds import mixed_seed
from convatlas.search.budget import macs_of
from convatlas.search.config import Random
from convatlas.search.proxy import proxy_cost
from convatlas.search.spaces import Decisions
from convatlas.search.strategy import Context, Row, Strategy

STREAM = 7_001  # of random numbers, apart from those of the other searches


class RandomSearch(Strategy):
    """Draws nets, gives each a proxy training, and keeps the best.

    Args:
        context: the run; where its strategy is `random`, that says the number of trials.
        budget: multiply-adds that must not be exceeded, those of the search beside; the first net is tried even if it
            alone exceeds them.
    """

    name = "random"

    def __init__(self, context: Context, budget: int | None = None) -> None:
        super().__init__(context)
        self.budget = budget

    @property
    def steps(self) -> int | None:
        strategy = self.context.run.search.strategy
        return strategy.trials if self.budget is None and isinstance(strategy, Random) else None

    def done(self, step: int) -> bool:
        if self.budget is None:
            return super().done(step)
        if step == 0:
            return False
        macs = macs_of(self.context.build(self._draw(step)), self.context.data.one_image())
        return self.spent + proxy_cost(macs, self.context.data, self.context.run.search.proxy) > self.budget

    def advance(self, step: int) -> list[Row]:
        return [self.try_net(self._draw(step))]

    def _draw(self, step: int) -> Decisions:
        assert self.context.space is not None
        seed = mixed_seed(self.context.run.seed, STREAM, step)
        return self.context.space.sample(torch.Generator().manual_seed(seed))
