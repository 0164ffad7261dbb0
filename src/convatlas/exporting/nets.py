"""What is exported of a trained run: the net between raw images and plain answers, and a description of both."""

from __future__ import annotations

from typing import Any

import convatlas
from convatlas.models.served import SERVED, Served
from convatlas.models.weights import digest
from convatlas.training.trained import TrainedRun

__all__ = ["describe", "served_net"]


def served_net(trained: TrainedRun) -> Served:
    """Return a run's net as it is exported; see `convatlas.models.served`."""
    data = trained.config.data
    return SERVED[data.task](trained.net, *trained.card.normalisation(data)).eval()


def describe(trained: TrainedRun) -> dict[str, Any]:
    """Return what a program has to know of an exported net: `Card.for_programs`, title, outputs, version, weights."""
    config = trained.config
    return {
        "title": config.about.title,
        **trained.card.for_programs(config.data, config.recipe.test_crop),
        "outputs": list(SERVED[config.data.task].outputs),
        "convatlas": convatlas.__version__,
        "weights_sha256": digest(trained.net.state_dict()),
    }
