"""Pictures of a trained net: the filters of its first layer, and its class activation maps."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from convatlas.atlas.results import Result
from convatlas.core.errors import UserError
from convatlas.core.record import REMEDY
from convatlas.reporting.images import EmbeddedImage, as_rgb, embedded

__all__ = ["activation_maps", "filters"]

MOST_FILTERS = 64
LEAST_SIDE = 3
"""Smaller filters are no pictures."""
SIDE = 28
"""A filter is drawn about so many pixels wide."""


def filters(result: Result) -> EmbeddedImage | None:
    """Draw the filters of the first convolution, if they see an image; each is scaled to its own range.

    Raises:
        UserError: the run's checkpoint is not readable.
    """
    run = result.median_run
    file = run.folder / "best.ckpt" if run else None
    if run is None or file is None or not file.is_file():
        return None
    weights = next((tensor for tensor in _tensors(file).values() if _is_filters(tensor)), None)
    if weights is None:
        return None
    shown = [_scaled(each) for each in weights[:MOST_FILTERS]]
    columns = min(len(shown), 16)
    size = len(shown[0][0]) + 4
    sheet = Image.new("RGB", (columns * size - 4, -(-len(shown) // columns) * size - 4), "white")
    for number, pixels in enumerate(shown):
        sheet.paste(as_rgb(pixels), (number % columns * size, number // columns * size))
    title = f"The first {len(shown)} filters" if len(weights) > len(shown) else f"All {len(shown)} filters"
    return embedded(sheet, f"{title} of the first layer, {result.variant.title}, seed {run.seed}")


def _tensors(file: Path) -> Mapping[str, Any]:
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    except (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{file} is not a readable checkpoint; {REMEDY}") from error


def _is_filters(tensor: Any) -> bool:
    return tensor.ndim == 4 and tensor.shape[1] in (1, 3) and min(tensor.shape[2:]) >= LEAST_SIDE


def _scaled(weights: Any) -> NDArray[np.uint8]:
    """Return one filter `(C, H, W)` as pixels from 0 to 255, enlarged."""
    values = weights.float().numpy()
    low, high = values.min(), values.max()
    pixels: NDArray[np.uint8] = ((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    factor = max(1, SIDE // len(pixels[0]))
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def activation_maps(result: Result) -> EmbeddedImage | None:
    """Return the class activation maps that the run with the median score left.

    Raises:
        UserError: the picture is not readable.
    """
    run = result.median_run
    file = run.folder / "figures" / "class_activation_maps.png" if run else None
    if run is None or file is None or not file.is_file():
        return None
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{file} is not a readable picture; {REMEDY}") from error
    image.thumbnail((900, 900))
    return embedded(image, f"Class activation maps of {result.variant.title}, seed {run.seed}", 65)
