"""Checks of what a user chooses, with errors that name the option and say which values fit."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

__all__ = ["check_choice", "check_image_size", "check_smallest_image"]


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless `model.<option>` is one of `choices`."""
    known = list(choices)
    if value not in known:
        raise ValueError(f"model.{option}={value} is not known; choose one of {', '.join(known)}.")


def check_image_size(images: Tensor, image_size: int) -> None:
    """Raise ValueError unless `images` `(B, C, H, W)` are as large as the fully connected layers were made for."""
    height, width = images.shape[-2:]
    if height != image_size or width != image_size:
        raise ValueError(
            f"model.image_size={image_size} does not fit images of {height}x{width} pixels: the fully connected layers "
            f"take {image_size}x{image_size} only. Resize the images, or set model.image_size to theirs."
        )


def check_smallest_image(images: Tensor, smallest: int) -> None:
    """Raise ValueError if `images` `(B, C, H, W)` have fewer than `smallest` pixels a side."""
    height, width = images.shape[-2:]
    if height < smallest or width < smallest:
        raise ValueError(
            f"data.image_size={height}x{width} is too small for this net with these options; it takes images from "
            f"{smallest}x{smallest} pixels on."
        )
