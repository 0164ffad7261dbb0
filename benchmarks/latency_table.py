"""Does the table of latencies predict which net is faster? `python benchmarks/latency_table.py [nets] [image_size]`.

Draws nets from FBNet's small search space, predicts each from the table (the sum over its operators), and measures it
whole. Prints Spearman's rank correlation, and fails below the 0.8 that the search needs. Run it when the machine does
nothing else: table and nets take turns and of each the fastest of many calls counts, but load still blurs the ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hydra import compose
from omegaconf import OmegaConf
from scipy.stats import pearsonr, spearmanr

from convatlas.core.composing import hydra_ready
from convatlas.search.config import FBNetSpaceConfig
from convatlas.search.latency import fastest, table_for
from convatlas.search.spaces import FBNetSpace

ENOUGH = 0.8
"""Rank correlation that a search needs."""


def main() -> None:
    """Measure, predict, compare."""
    torch.set_num_threads(1)
    number, side = (int(word) for word in [*sys.argv[1:], "20", "32"][:2])
    with hydra_ready():
        config = FBNetSpaceConfig.model_validate(OmegaConf.to_container(compose("search").search.space))
    space = FBNetSpace(config, side)
    generator = torch.Generator().manual_seed(0)
    drawn = [space.sample(generator) for _ in range(number)]
    with TemporaryDirectory() as folder:
        table = table_for(
            space,
            Path(folder) / "latency.json",
            in_channels=1,
            num_classes=10,
            device=torch.device("cpu"),
            rounds=60,
        )
    predicted = [table.of(space, decisions) for decisions in drawn]
    image = torch.rand(1, 1, side, side)
    measured = fastest([(space.build(decisions, 10, 1).eval(), image) for decisions in drawn], rounds=60)
    print(f"{'predicted, us':>14} {'measured, us':>14}  net")
    for one, other, decisions in sorted(zip(predicted, measured, drawn, strict=True)):
        print(f"{one:>14.0f} {other:>14.0f}  {space.describe(decisions)}")
    ranks, line = spearmanr(predicted, measured), pearsonr(predicted, measured)
    print(f"{number} nets: rank correlation {ranks.statistic:.3f}, correlation {line.statistic:.3f}")
    if ranks.statistic < ENOUGH:
        sys.exit(f"The table does not rank nets well enough: {ranks.statistic:.3f} is below {ENOUGH}.")


if __name__ == "__main__":
    main()
