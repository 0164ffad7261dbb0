"""Checks of what a user chooses for the nets of the early years, with errors that say which values fit."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

__all__ = ["check_choice", "check_exact_size", "check_width"]


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless `model.<option>` is one of `choices`."""
    known = list(choices)
    if value not in known:
        raise ValueError(f"model.{option}={value} is not known; choose one of {', '.join(known)}.")


def check_width(width: float) -> None:
    """Raise ValueError unless the factor on the channels is positive."""
    if not width > 0:
        raise ValueError(f"model.width={width} must be above 0; 1 is the paper's width.")


def check_exact_size(images: Tensor, image_size: int) -> None:
    """Raise ValueError unless `images` `(B, C, H, W)` are as large as the fully connected layers were made for."""
    height, width = images.shape[-2:]
    if height != image_size or width != image_size:
        raise ValueError(
            f"model.image_size={image_size} does not fit images of {height}x{width} pixels: the fully connected layers "
            f"take {image_size}x{image_size} only. Resize the images, or set model.image_size to theirs."
        )
