"""The draws of a batch, and what they change."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.core.config import Augmentation
from convatlas.core.errors import UserError
from convatlas.data.augmentation.geometry import (
    TRIALS,
    boxes_in_window,
    flip,
    flip_boxes,
    inception_windows,
    pad_and_crop,
    rotate_and_zoom,
    see_through,
    within,
    zoomed_out,
)
from convatlas.data.augmentation.mixing import beta, mix, own_shares
from convatlas.data.augmentation.pixels import (
    change_contrast,
    change_saturation,
    cut_out,
    principal_colours,
    turn_hue,
)
from convatlas.data.augmentation.rand_augment import MOST_OPERATIONS, OPERATIONS, rand_augment

__all__ = ["Augmenter", "Changes", "check_used"]

NOT_FOR = {
    "detection": {
        "crop_padding": "would cut objects unseen (random_area keeps their boxes right)",
        "cutout": "would cut objects unseen",
        "rotation_degrees": "would loosen the boxes",
        "scale": "would cut objects unseen (random_area and zoom_out keep their boxes right)",
        "rand_augment": "would loosen the boxes",
        "mixup": "is for classification",
        "cutmix": "is for classification",
    },
    "segmentation": {
        "rand_augment": "would move images and not their masks",
        "mixup": "is for classification",
        "cutmix": "is for classification",
    },
}
"""What a task does not allow, and why."""
PART_OF = {
    "crop_padding_mode": "crop_padding",
    "rand_augment_magnitude": "rand_augment",
    "least_box_area": "random_area",
}
"""What says how a part works, and the part."""


def check_used(config: Augmentation, task: str) -> None:
    """Check that nothing is set which would change no image of a training.

    Raises:
        UserError: a part is switched off, or cuts no boxes, and it is set how it works.
    """
    for key, part in PART_OF.items():
        value = getattr(config, key)
        used = getattr(config, part) and (key != "least_box_area" or task == "detection")
        if not used and value != (usual := Augmentation.model_fields[key].default):
            where = "" if getattr(config, part) else f" while {part} is switched off"
            raise UserError(f"recipe.augmentation.{key}={value} does nothing for {task}{where}; set it to {usual}.")


class Augmenter:
    """Augmentation as a recipe has it.

    Args:
        config: the recipe's augmentation; with everything switched off nothing is changed, bit for bit.
        task: "classification", "detection" or "segmentation".
        image_size: side of the images a net gets, in pixels.
        channels: of the images.
        colours: `(C, C)` principal components of the training pixels, for colour noise; see `for_images`.

    Raises:
        UserError: the task or the number of channels does not allow an option.
    """

    def __init__(
        self, config: Augmentation, task: str, image_size: int, channels: int = 3, colours: Tensor | None = None
    ) -> None:
        for key, reason in NOT_FOR.get(task, {}).items():
            if getattr(config, key):
                raise UserError(f"recipe.augmentation.{key}={getattr(config, key)} {reason}; for {task} set it to 0.")
        for key in ("saturation", "hue"):
            if getattr(config, key) and channels != 3:
                raise UserError(
                    f"recipe.augmentation.{key}={getattr(config, key)} is for images of 3 channels, and these have "
                    f"{channels}; set it to 0."
                )
        least = min((image_size, *config.image_sizes))
        if config.crop_padding_mode == "reflect" and config.crop_padding >= least:
            raise UserError(
                f"recipe.augmentation.crop_padding={config.crop_padding} is more than can be mirrored of images of "
                f"{least} pixels; set it below {least}, or crop_padding_mode=black."
            )
        if config.rand_augment and channels not in {1, 3}:
            raise UserError(
                f"recipe.augmentation.rand_augment={config.rand_augment} is for images of 1 or 3 channels, and these "
                f"have {channels}; set it to 0."
            )
        self.config = config
        self.task = task
        self.image_size = image_size
        self.channels = channels
        self.colours = colours

    def for_images(self, images: NDArray[np.uint8]) -> Augmenter:
        """Return the augmenter for a split with these training images `(N, C, H, W)`: it knows their colours.

        Raises:
            UserError: the number of channels does not allow an option.
        """
        colours = principal_colours(images) if self.config.colour_noise else None
        return Augmenter(self.config, self.task, self.image_size, images.shape[1], colours)

    def draw(self, images: int, generator: torch.Generator) -> Changes:
        """Draw for a number of images, on the generator's device.

        Every kind of number is drawn whether it is used or not: switching one part off leaves the others as they were.
        What is drawn last depends on the number of channels.
        """
        config = self.config
        place: dict[str, Any] = {"generator": generator, "device": generator.device}

        def uniform(*size: int) -> Tensor:
            return torch.rand(images, *size, **place)

        def around(middle: float, spread: float) -> Tensor:
            return middle + spread * (2 * uniform() - 1)

        numbers: dict[str, Any] = {
            "shift": torch.randint(0, 2 * config.crop_padding + 1, (images, 2), **place),
            "mirrored": (uniform() < 0.5) & config.horizontal_flip,
            "degrees": around(0.0, config.rotation_degrees),
            "zoom": around(1.0, config.scale),
            "hole": torch.randint(0, self.image_size, (images, 2), **place),
            "brightness": around(1.0, config.brightness),
            "contrast": around(1.0, config.contrast),
            "saturation": around(1.0, config.saturation),
            "window": self._windows(uniform),
            "partner": torch.randperm(images, **place),
            "blend": uniform(),
            "centre": uniform(2),
            "cut": self._cuts(uniform()),
        }
        side = self._side(torch.randint(0, max(1, len(config.image_sizes)), (1,), **place))
        numbers["hole"] = numbers["hole"] * side // self.image_size
        numbers["operations"] = torch.randint(0, OPERATIONS, (images, MOST_OPERATIONS), **place)
        numbers["downwards"] = uniform(MOST_OPERATIONS) < 0.5
        numbers["noise"] = config.colour_noise * torch.randn(images, self.channels, **place)
        numbers["hue"] = around(0.0, config.hue)
        return Changes(config=config, side=side, colours=self.colours, **numbers)

    def _windows(self, uniform: Callable[..., Tensor]) -> Tensor:
        """Draw what is seen of each image: first it is laid on a canvas, then Inception's crop is taken of that."""
        config = self.config
        crops = inception_windows(uniform(TRIALS), uniform(TRIALS), uniform(2), config.random_area or (1.0, 1.0))
        factors = 1 + (config.zoom_out - 1) * uniform()
        canvases = zoomed_out(uniform() < 0.5, factors, uniform(2))
        return canvases if config.random_area is None else within(canvases, crops)

    def _cuts(self, coin: Tensor) -> Tensor:
        """Say which images get a rectangle of another: of two kinds of mixing, each image has one."""
        likelihood = 0.5 if self.config.mixup and self.config.cutmix else float(self.config.cutmix > 0)
        return coin < likelihood

    def _side(self, number: Tensor) -> int:
        return self.config.image_sizes[int(number)] if self.config.image_sizes else self.image_size


@dataclass(frozen=True, eq=False)
class Changes:
    """What happens to each of B images. Indexing takes the changes of some of them.

    The numbers stay on the CPU, which decides by them without asking a GPU; those that pixels are computed with
    are sent where the images lie.

    Attributes:
        config: which changes there are.
        side: the images' side in this batch, in pixels.
        colours: `(C, C)` principal components of the training pixels, or None where there is no colour noise.
        shift: `(B, 2)` int64, row and column of the crop in the padded image.
        mirrored: `(B,)` bool.
        degrees: `(B,)` float32, counter-clockwise.
        zoom: `(B,)` float32, above 1 enlarges.
        hole: `(B, 2)` int64, row and column of the centre of the cut-out square.
        brightness, contrast, saturation: `(B,)` float32, factors.
        window: `(B, 4)` float32, left, top, width and height of what is seen, in shares of the image.
        partner: `(B,)` int64, position in the whole batch of the image that is mixed in.
        blend: `(B,)` float32 in [0, 1), gives the share of the image itself in mixup and CutMix.
        centre: `(B, 2)` float32 in [0, 1), row and column of CutMix's rectangle.
        cut: `(B,)` bool, CutMix instead of mixup.
        operations: `(B, MOST_OPERATIONS)` int64, RandAugment's.
        downwards: `(B, MOST_OPERATIONS)` bool, their direction.
        noise: `(B, C)` float32, of each principal component.
        hue: `(B,)` float32, turn of the colours as a share of their circle.
    """

    config: Augmentation
    side: int
    colours: Tensor | None
    shift: Tensor
    mirrored: Tensor
    degrees: Tensor
    zoom: Tensor
    hole: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    window: Tensor
    partner: Tensor
    blend: Tensor
    centre: Tensor
    cut: Tensor
    operations: Tensor
    downwards: Tensor
    noise: Tensor
    hue: Tensor

    def __getitem__(self, which: slice | Tensor) -> Changes:
        return self._each(lambda numbers: numbers[which])

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return self.config.mixup > 0 or self.config.cutmix > 0

    def images(self, images: Tensor, mean: Tensor | float = 0.0) -> Tensor:
        """Change `(B, C, S, S)` float images in [0, 1], before normalisation; `mean`, `(C, 1, 1)`, is their colour."""
        config, here = self.config, images.device
        images = self._move(images, mode="bilinear", mean=mean)
        if config.brightness:
            images = (images * self.brightness.to(here)[:, None, None, None]).clamp_(0, 1)
        if config.contrast:
            images = change_contrast(images, self.contrast.to(here))
        if config.saturation:
            images = change_saturation(images, self.saturation.to(here))
        if config.hue:
            images = turn_hue(images, self.hue.to(here))
        if self.colours is not None:
            images = (images + (self.noise @ self.colours.T).to(here)[:, :, None, None]).clamp_(0, 1)
        if config.rand_augment:
            some = slice(config.rand_augment)
            strength = config.rand_augment_magnitude
            images = rand_augment(images, self.operations[:, some], self.downwards[:, some], strength)
        return images

    def moved(self, images: Tensor) -> Tensor:
        """Move `(B, C, S, S)` float images without changing their colours."""
        return self._move(images, mode="bilinear")

    def normalised(self, images: Tensor) -> Tensor:
        """Cut squares out of normalised `(B, C, S, S)` images; 0 is the mean there."""
        return cut_out(images, self.hole.to(images.device), self.config.cutout) if self.config.cutout else images

    def mixed(self, images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Mix `(B, C, S, S)` images with their partners; returns them and the share `(B,)` of their own labels."""
        config, here = self.config, images.device
        cut, blended = (beta(self.blend, alpha or 1.0) for alpha in (config.cutmix, config.mixup))  # 1 if not used
        shares = torch.where(self.cut, cut, blended)
        pixels, labels = own_shares(shares.to(here), self.centre.to(here), self.cut.to(here), self.side)
        return mix(images, others, pixels), labels

    def masks(self, masks: Tensor) -> Tensor:
        """Move `(B, S, S)` class numbers as the images are moved; no new class numbers arise."""
        return self._move(masks[:, None].float(), mode="nearest")[:, 0].to(masks.dtype)

    def objects(self, boxes: list[Tensor], labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Move the boxes `(n, 4)` of each image as the images are moved; what is hardly seen then goes."""
        boxes = [flip_boxes(b, self.side) if m else b for b, m in zip(boxes, self.mirrored.tolist(), strict=True)]
        if not self._has_windows:
            return boxes, labels
        least = self.config.least_box_area
        rows = zip(boxes, labels, self.window, strict=True)
        seen = [boxes_in_window(b, n, window, self.side, least) for b, n, window in rows]
        return [b for b, _ in seen], [n for _, n in seen]

    @property
    def _has_windows(self) -> bool:
        return self.config.random_area is not None or self.config.zoom_out > 1

    def _move(self, images: Tensor, mode: str, mean: Tensor | float = 0.0) -> Tensor:
        config = self.config
        if config.crop_padding:
            shift, how = self.shift.to(images.device), config.crop_padding_mode
            if how == "mean":
                images = pad_and_crop(images - mean, shift, config.crop_padding) + mean
            else:
                images = pad_and_crop(images, shift, config.crop_padding, "reflect" if how == "reflect" else "constant")
        if config.horizontal_flip:
            images = flip(images, self.mirrored.to(images.device))
        if self._has_windows:
            samples = math.ceil(config.zoom_out) if mode == "bilinear" else 1
            images = see_through(images, self.window, mode, samples)
        if config.rotation_degrees or config.scale:
            images = rotate_and_zoom(images, self.degrees, self.zoom, mode)
        return images

    def _each(self, change: Callable[[Tensor], Tensor]) -> Changes:
        shared = {"config", "side", "colours"}
        names = [field.name for field in fields(self) if field.name not in shared]
        numbers: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **numbers)
