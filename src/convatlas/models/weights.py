"""Weights that a net starts from: whether they fit, and what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from convatlas.errors import UserError

__all__ = ["State", "digest", "take_weights"]

State = Mapping[str, Tensor]
"""Tensors by their names in a net's `state_dict`."""


def take_weights(net: nn.Module, state: State, num_classes: int, source: str) -> list[str]:
    """Copy weights into a net; classifiers of another number of classes keep what they were drawn with.

    Args:
        net: the net.
        state: as many tensors as the net has, under the same names.
        num_classes: classes of the net.
        source: where they come from, for the messages.

    Returns:
        The names of the tensors that were left out.

    Raises:
        UserError: a tensor is missing or too many, or has another shape.
    """
    own = net.state_dict()
    strange = sorted(set(own) ^ set(state))
    if strange:
        where = "has" if strange[0] in state else "lacks"
        raise UserError(
            f"model.weights={source} {where} {strange[0]}, unlike this net ({len(strange)} names differ); "
            "take weights of the same architecture and options."
        )
    left_out = [name for name, tensor in own.items() if tensor.shape != state[name].shape]
    theirs = [_classes(state[name], own[name], num_classes) for name in left_out]
    wrong = [name for name, classes in zip(left_out, theirs, strict=True) if classes is None or classes != theirs[0]]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"model.weights={source}: {name} has the shape {tuple(state[name].shape)} there and "
            f"{tuple(own[name].shape)} here; take weights of the same architecture and options."
        )
    net.load_state_dict({name: tensor for name, tensor in state.items() if name not in left_out}, strict=False)
    return left_out


def _classes(theirs: Tensor, ours: Tensor, num_classes: int) -> int | None:
    """Return how many classes a classifier's tensor is for that differs from ours in that alone; None for others."""
    is_head = theirs.ndim == ours.ndim >= 1 and len(ours) == num_classes and theirs.shape[1:] == ours.shape[1:]
    return len(theirs) if is_head else None


def digest(state: State) -> str:
    """Return the sha256 of weights: of their names, types, shapes and values, whatever file they lie in."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
