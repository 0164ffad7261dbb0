"""Losses of the tasks: cross-entropy of mixed images, soft Dice, edges, and the weighted sum of named terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.core.errors import UserError


class CrossEntropy(nn.CrossEntropyLoss):
    """The mean cross-entropy of logits `(B, classes, ...)` with class numbers `(B, ...)`.

    Args:
        label_smoothing: share of every label that is spread over all classes, from 0 up to, but not including, 1.
        class_weights: how much an image (in segmentation a pixel) of each class counts; None counts all alike.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} is a share from 0 up to, but not including, 1")
        if class_weights is not None and not all(weight > 0 for weight in class_weights):
            raise ValueError(f"class_weights={list(class_weights)} must all be above 0")
        super().__init__(label_smoothing=label_smoothing)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weights, persistent=False)

    def mixed(self, logits: Tensor, labels: Tensor, partner_labels: Tensor, shares: Tensor) -> Tensor:
        """Return the mean cross-entropy with labels that are mixed of two (Zhang et al. 2018, section 2).

        The cross-entropy is linear in the label, so it is that of each label, weighted with its share.

        Args:
            logits: `(B, classes)`.
            labels: `(B,)` class numbers.
            partner_labels: `(B,)` class numbers of the images that were mixed in.
            shares: `(B,)` how much of an image is its own, 0 to 1.
        """
        own, partner = (
            F.cross_entropy(logits, numbers, reduction="none", label_smoothing=self.label_smoothing)
            for numbers in (labels, partner_labels)
        )
        return (shares * own + (1 - shares) * partner).mean()


def soft_dice_loss(probabilities: Tensor, masks: Tensor, smoothing: float = 1.0) -> Tensor:
    """Return one minus the mean over all classes of the soft Dice of a batch.

    For each class Dice is `2 * sum(p * y) / (sum(p) + sum(y))` over all pixels of the batch (Milletari et al. 2016 with
    plain sums, as SAUNet has it).

    Args:
        probabilities: `(B, classes, H, W)`.
        masks: `(B, H, W)` class numbers; pixels below 0 count nowhere.
        smoothing: pixels added above and below: a class that the batch lacks then costs as little as it is predicted,
            and nothing is divided by zero.
    """
    known = (masks >= 0)[:, None]
    truth = F.one_hot(masks.clamp_min(0), probabilities.shape[1]).movedim(-1, 1).to(probabilities.dtype) * known
    probabilities = probabilities * known
    pixels = (0, 2, 3)
    shared = (probabilities * truth).sum(pixels)
    dice = (2 * shared + smoothing) / (probabilities.sum(pixels) + truth.sum(pixels) + smoothing)
    return 1 - dice.mean()


def edge_loss(logits: Tensor, edges: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of predicted edges; both are `(B, 1, H, W)`, the truth 0 or 1."""
    return F.binary_cross_entropy_with_logits(logits.float(), edges)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Add the terms up, each with its weight; a term without one counts once.

    Raises:
        UserError: a weight belongs to no term.
    """
    check_terms(weights, terms)
    total = sum(weights.get(name, 1.0) * value for name, value in terms.items())
    assert isinstance(total, Tensor), "a loss has at least one term"
    return total


def check_terms(weights: Mapping[str, float], terms: Iterable[str]) -> None:
    """Raise UserError if `recipe.loss.auxiliary` weighs a term that the loss does not have."""
    known = list(terms)
    for name, weight in weights.items():
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has one term alone"
            raise UserError(f"recipe.loss.auxiliary.{name}={weight}: the loss has no such term; {has}.")
