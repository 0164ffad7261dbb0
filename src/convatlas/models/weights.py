"""Weights that a net starts from: whether they fit, and what they are."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.core.errors import UserError

State = Mapping[str, Tensor]
"""Tensors by their names in a net's `state_dict`."""
RETRAIN = "train again or take another file"
"""What helps where a checkpoint of a finished run is damaged."""


def take_weights(net: nn.Module, state: State, num_classes: int, source: str) -> list[str]:
    """Copy weights into a net; classifiers of another number of classes keep what they were drawn with.

    Args:
        state: as many tensors as the net has, under the same names.

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
            f"weights={source} {where} {strange[0]}, unlike this net ({len(strange)} names differ); "
            "take weights of the same architecture and options."
        )
    left_out = [name for name, tensor in own.items() if tensor.shape != state[name].shape]
    theirs = [_classes(state[name], own[name], num_classes) for name in left_out]
    wrong = [name for name, classes in zip(left_out, theirs, strict=True) if classes is None or classes != theirs[0]]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"weights={source}: {name} has the shape {tuple(state[name].shape)} there and "
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


def read_checkpoint(path: Path, remedy: str = RETRAIN) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, executing nothing in it; `remedy` ends the sentence about a damaged one.

    Raises:
        UserError: it is missing, truncated, or not a checkpoint of this project.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        with zipfile.ZipFile(path) as archive:  # torch writes a check sum of each tensor, and does not compare it
            if broken := archive.testzip():
                raise zipfile.BadZipFile(broken)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; train first, or correct the path.") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or not a checkpoint of convatlas; {remedy}.") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(
            f"{path} holds no weights of convatlas (no state_dict); take a best.ckpt or last.ckpt of a run."
        )
    return checkpoint


def load_net(net: nn.Module, path: Path, remedy: str = RETRAIN) -> None:
    """Load a net's weights from a checkpoint of its run; `remedy` is that of `read_checkpoint`.

    Raises:
        UserError: the checkpoint belongs to another net.
    """
    prefix = "net."
    saved = read_checkpoint(path, remedy)["state_dict"]
    state = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
    own = net.state_dict()
    wrong = [
        key for key in sorted(own | state) if key not in own or key not in state or own[key].shape != state[key].shape
    ]
    if wrong:
        raise UserError(
            f"{path} belongs to another net: {len(wrong)} of {len(own)} tensors differ, the first is {wrong[0]}. "
            "Use it with the config.yaml beside it."
        )
    net.load_state_dict(state)
