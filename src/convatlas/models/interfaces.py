"""What a net may offer beside `forward`. A net offers it by having the method or attribute; others ask here."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class FollowsTraining(Protocol):
    """A net whose forward pass depends on how far its training is, or draws something that all processes must share."""

    def begin_step(self, step: int, steps: int, seed: int) -> None:
        """Prepare one training batch.

        Args:
            step: optimiser steps that are done.
            steps: optimiser steps of the whole training, at least 1.
            seed: for draws that are the same on every process; another one for every batch.
        """


@runtime_checkable
class HasFigures(Protocol):
    """A net with figures of its last training batch, such as the share of its blocks that were computed."""

    def step_figures(self) -> dict[str, float]:
        """Return figures by name; their means over an epoch are logged as `net/<name>`."""


@runtime_checkable
class AddsLossTerms(Protocol):
    """A net with terms of its own in the loss, such as the decay of weights that it generates."""

    def loss_terms(self) -> dict[str, Tensor]:
        """Return scalars by name, after the forward pass of a training batch; they are added to the loss."""


@runtime_checkable
class HasParts(Protocol):
    """A net with nets inside that work alone, such as the columns of a FractalNet."""

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts by name; each shares the weights and takes what the whole net takes."""


@runtime_checkable
class HasDenseOutputs(Protocol):
    """A detector most of whose work does not depend on the images, so that its costs are known without storage."""

    def dense_outputs(self, images: Tensor) -> Any:
        """Compute what comes before boxes are chosen, of `images: (B, C, H, W)`."""


@runtime_checkable
class Invertible(Protocol):
    """A net whose input can be computed from its features."""

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute the last features of `images: (B, C, H, W)`."""

    def inverse(self, features: Tensor) -> Tensor:
        """Compute the images from the features, `(B, C, H, W)`."""


@runtime_checkable
class Reversible(Protocol):
    """A layer whose inputs can be computed from its outputs, so that they need not be stored for the backward pass."""

    def inverse(self, *outputs: Any) -> Any:
        """Compute the inputs."""


class AuxiliaryOutput(NamedTuple):
    """What a net with auxiliary classifiers returns in training; each tensor is `(B, num_classes)`."""

    logits: Tensor
    auxiliary: tuple[Tensor, ...]


@runtime_checkable
class HasAuxiliaryClassifiers(Protocol):
    """A net that returns an `AuxiliaryOutput` in training, if there are any auxiliary classifiers."""

    auxiliary_loss_weights: Sequence[float]
    """The weight of each auxiliary classifier's loss; that of the main one is 1."""


@runtime_checkable
class LeavesGradientsOut(Protocol):
    """A net that leaves parts of itself out of some training batches, whose parameters then get no gradient."""

    leaves_gradients_out: bool


def is_reversible(net: nn.Module) -> bool:
    """Return whether a net has reversible layers."""
    return any(isinstance(module, Reversible) for module in net.modules())


def auxiliary_loss_weights(net: nn.Module) -> tuple[float, ...]:
    """Return the weights of the losses of auxiliary classifiers; empty for a net without any."""
    return tuple(net.auxiliary_loss_weights) if isinstance(net, HasAuxiliaryClassifiers) else ()


def leaves_gradients_out(net: nn.Module) -> bool:
    """Return whether some parameters may get no gradient in some training batches."""
    return isinstance(net, LeavesGradientsOut) and net.leaves_gradients_out
