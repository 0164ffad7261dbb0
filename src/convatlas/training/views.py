"""A net tested on several views of each image, if it is one that can be."""

from __future__ import annotations

import torch
from torch import nn

from convatlas.config import RunConfig
from convatlas.errors import UserError
from convatlas.models.layers.test_time import VIEWS, TestTimeAugmentation

__all__ = ["with_views"]


def with_views(net: nn.Module, view: str, config: RunConfig, option: str) -> TestTimeAugmentation:
    """Put test-time augmentation around a net.

    Args:
        net: a net of classification.
        view: "flip", "ten_crop" or "multi_scale".
        config: the net's run.
        option: what chose the view, for the message.

    Raises:
        UserError: the task is another, or the net does not take the sizes of the views.
    """
    if config.data.task != "classification":
        raise UserError(f"{option} is for classification, and this run is {config.data.task}; leave it out.")
    augmented = VIEWS[view](net)
    device = next(net.parameters()).device
    size = config.data.image_size
    was_training = net.training
    try:
        with torch.inference_mode():
            augmented.eval()(torch.zeros(1, config.data.in_channels, size, size, device=device))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{option}: this net does not take images of other sizes ({error}).") from error
    finally:
        augmented.train(was_training)
    return augmented
