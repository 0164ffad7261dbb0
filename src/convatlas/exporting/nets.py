"""What is exported of a trained run: the net between raw images and plain answers, and a description of both."""

from __future__ import annotations

from typing import Any

import convatlas
from convatlas.models.served import ServedDetector, ServedNet
from convatlas.models.weights import digest
from convatlas.training.trained import TrainedRun

__all__ = ["OUTPUTS", "describe", "served_net"]

OUTPUTS = {"classification": ["probabilities"], "segmentation": ["probabilities"]}
OUTPUTS["detection"] = ["boxes", "scores", "labels"]
"""Names of what an exported net answers with, by task."""


def served_net(trained: TrainedRun) -> ServedNet | ServedDetector:
    """Return a run's net as it is exported; see `convatlas.models.served`."""
    if trained.config.data.task == "detection":
        return ServedDetector(trained.net).eval()
    return ServedNet(trained.net, *trained.card.normalisation(trained.config.data)).eval()


def describe(trained: TrainedRun) -> dict[str, Any]:
    """Return what a program has to know of an exported net: `Card.for_programs`, title, outputs, version, weights."""
    config = trained.config
    return {
        "title": config.about.title,
        **trained.card.for_programs(config.data, config.recipe.test_crop),
        "outputs": OUTPUTS[config.data.task],
        "convatlas": convatlas.__version__,
        "weights_sha256": digest(trained.net.state_dict()),
    }
