"""Augmentation of whole batches, each image with its own draw.

First the random numbers of a batch are drawn (`Augmenter.draw`), then they are applied (`Changes`). So each of several
processes can draw for the whole batch and apply the numbers of its own share. Numbers are drawn on the CPU, so
that they are the same for every device; they are applied in torch operations without a loop over images, on the device
where the images lie.

Order: resize (multi-scale training), pad and crop, mirror, zoom out and Inception crop, rotate and zoom, brightness,
contrast, saturation, hue, colour noise, RandAugment, then (after normalisation) cutout, and last mixup and CutMix.
What comes into an image from outside is black, and class 0 in a mask.
"""

from convatlas.data.augmentation.changes import Augmenter, Changes, check_used
from convatlas.data.augmentation.geometry import flip, flip_boxes, pad_and_crop, rotate_and_zoom
from convatlas.data.augmentation.pixels import cut_out

__all__ = ["Augmenter", "Changes", "check_used", "cut_out", "flip", "flip_boxes", "pad_and_crop", "rotate_and_zoom"]
