"""What is exported of a trained run: the net between raw images and plain answers, and a description of both."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import convatlas
from convatlas.models.served import ServedDetector, ServedNet
from convatlas.models.weights import digest
from convatlas.training.trained import TrainedRun

__all__ = ["OUTPUTS", "describe", "served_net", "without_branches"]

OUTPUTS = {"classification": ["probabilities"], "segmentation": ["probabilities"]}
OUTPUTS["detection"] = ["boxes", "scores", "labels"]
"""Names of what an exported net answers with, by task."""


def served_net(trained: TrainedRun) -> nn.Module:
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


def _batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Suppress overlapping boxes of each class: `torchvision.ops.batched_nms` without its branches on their number."""
    top = torch.cat([boxes.new_zeros(1, 4), boxes]).max()
    return torch.ops.torchvision.nms(boxes + (classes.to(boxes) * (top + 1))[:, None], scores, threshold)


@contextmanager
def without_branches() -> Iterator[None]:
    """Let detectors be traced: torchvision's suppression asks how many boxes there are, which a graph cannot."""
    import torchvision

    theirs = torchvision.ops.boxes.batched_nms
    with ExitStack() as stack:
        for module in [*sys.modules.values()]:
            if getattr(module, "__dict__", {}).get("batched_nms") is theirs:
                stack.enter_context(patch.object(module, "batched_nms", _batched_nms))
        yield
