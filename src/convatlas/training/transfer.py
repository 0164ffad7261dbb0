"""Transfer learning: the weights that a training starts from, and the part of the net that it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError, near_matches
from convatlas.models.build import build_model
from convatlas.models.freezing import freeze
from convatlas.models.weights import State, digest, read_checkpoint, take_weights
from convatlas.tasks import task_class

__all__ = ["check_weights", "load_initial_weights", "weights_digest"]


def check_weights(config: RunConfig) -> None:
    """Load and freeze for every seed once, so that an error ends the run before anything is written.

    Raises:
        UserError: as `load_initial_weights`.
    """
    if config.weights is not None or config.recipe.trainable != "all":
        for seed in config.seeds:
            load_initial_weights(build_model(config.model), config, seed)


def load_initial_weights(net: nn.Module, config: RunConfig, seed: int) -> list[str]:
    """Load `weights` into a new net and freeze what `recipe.trainable` leaves out.

    Returns:
        Messages on what was done.

    Raises:
        UserError: the weights cannot be read or do not fit, or it is not clear what to freeze.
    """
    messages = []
    source, classes = config.weights, config.data.num_classes
    if source is not None:
        left_out = take_weights(net, read_weights(source, config.model, seed), classes, str(source))
        new = f", but for {', '.join(left_out)}, made for another number of classes" if left_out else ""
        messages.append(f"The net begins with the weights of {source}{new}.")
    trainable = config.recipe.trainable
    if trainable != "all":
        if not task_class(config).has_image_logits:
            raise UserError(f"recipe.trainable={trainable} is for classification; for {config.data.task} use all.")
        size = config.data.image_size
        layers = freeze(net, trainable, classes, torch.zeros(1, config.data.in_channels, size, size))
        values = [sum(p.numel() for p in net.parameters() if p.requires_grad or every) for every in (False, True)]
        untrained = "" if source is not None else "; the rest keeps its random initial values, since weights=null"
        messages.append(f"Trained: {values[0]:,} of {values[1]:,} parameters, {layers[0]} to {layers[-1]}{untrained}.")
    return messages


def weights_digest(config: RunConfig, seed: int) -> str | None:
    """Return the sha256 of a seed's initial weights; None where they are random.

    Raises:
        UserError: they cannot be read.
    """
    source = config.weights
    return None if source is None else digest(read_weights(source, config.model, seed))


def read_weights(source: Any, model: Mapping[str, Any], seed: int) -> State:
    """Read weights; nothing in a file is executed.

    Args:
        source: the folder of a finished run, of one seed, or of all, of which the same seed is taken; a
            `.safetensors` file; a checkpoint of a run; or else a tag of timm.
        model: `conf/model`, for the number of channels of timm's weights.
        seed: of the run that begins.

    Raises:
        UserError: there is nothing of that name, or it cannot be read.
    """
    path = Path(str(source))
    if path.is_dir():
        return _of_run(path, seed)
    if path.is_file():
        return _of_file(path)
    if path.suffix in {".safetensors", ".ckpt"} or len(path.parts) > 1:
        raise UserError(f"weights={source} does not exist; name a finished run, a .safetensors file or a tag of timm.")
    return _of_timm(str(source), model)


def _of_run(folder: Path, seed: int) -> State:
    found = next((f for f in (folder / "best.ckpt", folder / f"seed={seed}" / "best.ckpt") if f.is_file()), None)
    if found is None:
        seeds = sorted(each.name for each in folder.glob("seed=*"))
        hint = f"it has {', '.join(seeds)}: name one of them" if seeds else "train it first, or correct the path"
        raise UserError(f"weights={folder} holds no best.ckpt of seed {seed}; {hint}.")
    return _of_checkpoint(found)


def _of_file(file: Path) -> State:
    if file.suffix == ".ckpt":
        return _of_checkpoint(file)
    if file.suffix != ".safetensors":
        raise UserError(f"weights={file} is no .safetensors file, and others could run code; convert it first.")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights={file} cannot be read ({error}); fetch or write it again.") from error


def _of_checkpoint(file: Path) -> State:
    prefix = "net."
    saved = read_checkpoint(file)["state_dict"]
    return {name.removeprefix(prefix): tensor for name, tensor in saved.items() if name.startswith(prefix)}


def _of_timm(tag: str, model: Mapping[str, Any]) -> State:
    """Fetch weights with timm, which adapts the first convolution to the number of channels."""
    import timm

    if not timm.models.is_model_pretrained(tag):
        near = near_matches(tag, timm.list_pretrained())
        raise UserError(f"weights={tag} is neither a run, nor a file, nor a tag of timm. {near}")
    try:
        donor = timm.create_model(tag, pretrained=True, in_chans=model["in_channels"])
    except Exception as error:  # whatever stops a download
        raise UserError(
            f"weights={tag} cannot be fetched ({type(error).__name__}); check the network, or name a file."
        ) from error
    return donor.state_dict()
