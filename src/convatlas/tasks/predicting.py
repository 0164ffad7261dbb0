"""One new image through a trained net of any task: plain values for a table, and a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from convatlas.core.config import DataConfig
from convatlas.data.decoding import centre_square

if TYPE_CHECKING:
    from convatlas.data.card import Card

LEAST_SCORE = 0.3  # detections below it are neither listed nor drawn
PALETTE = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999"]


def describe_prediction(net: nn.Module, image: Tensor, data: DataConfig, card: Card) -> tuple[dict[str, Any], Any]:
    """Run the net on one image.

    Args:
        net: in evaluation mode.
        image: `(C, H, W)` in [0, 1], of any size; it is cut, padded or squeezed to a square as the training's images
            were, and resampled to their size.
        data: the data configuration of the net's run.
        card: the data card of the net's run.

    Returns:
        A row of plain values, boxes in pixels of the image as given; and what `draw_prediction` needs.
    """
    whole = (image.shape[1], image.shape[2])
    image, left, top = _squared(image, card)
    height, width = image.shape[1:]
    size = (data.image_size, data.image_size)
    shrinks = max(height, width) > data.image_size
    scaled = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=shrinks)
    if data.task == "detection":
        found = net(scaled)[0]
        boxes = found["boxes"] * torch.tensor([width / size[1], height / size[0]] * 2) - torch.tensor([left, top] * 2)
        return _objects({**found, "boxes": clip_boxes_to_image(boxes, whole)}, card)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (card.mean, card.std))
    images = (scaled - mean) / std
    if card.has_canny(data):
        images = torch.cat([images, _canny(scaled)], dim=1)
    probabilities = net(images).softmax(dim=1)
    if data.task == "classification":
        return _classes(probabilities[0], card)
    margin = (data.image_size - probabilities.shape[-1]) // 2  # an unpadded U-Net says nothing of the border
    return _areas(F.pad(probabilities, (margin,) * 4), (height, width), card)


def _squared(image: Tensor, card: Card) -> tuple[Tensor, int, int]:
    """Bring an image to the shape that the preparation gave the others, and say how far it moved right and down."""
    height, width = image.shape[1:]
    if card.fitted == "centre":
        top, left, side, _ = centre_square(height, width)
        return image[:, top : top + side, left : left + side], -left, -top
    if card.source.get("fit") == "letterbox":
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        return F.pad(image, (left, side - width - left, top, side - height - top)), left, top
    return image, 0, 0


def _canny(images: Tensor) -> Tensor:
    """Return the Canny edges `(B, 1, H, W)` of images in [0, 1], found on 8 bits as in the preparation."""
    from convatlas.data.edges import canny_edges

    return torch.from_numpy(canny_edges((255 * images).round().to(torch.uint8).numpy()))[:, None].float()


def _classes(probabilities: Tensor, card: Card) -> tuple[dict[str, Any], None]:
    confidence, numbers = probabilities.topk(min(5, len(card.classes)))
    names = [card.classes[n] for n in numbers.tolist()]
    ranked = [{"class": name, "probability": p} for name, p in zip(names, confidence.tolist(), strict=True)]
    return {"prediction": names[0], "confidence": float(confidence[0]), "top": ranked}, None


def _objects(found: dict[str, Tensor], card: Card) -> tuple[dict[str, Any], dict[str, Tensor]]:
    sure = found["scores"] >= LEAST_SCORE
    boxes, labels, scores = found["boxes"][sure], found["labels"][sure], found["scores"][sure]
    listed = [
        {"class": card.classes[n], "score": s, "box": b}
        for n, s, b in zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
    ]
    return {"objects": listed, "count": len(listed)}, {"boxes": boxes}


def _areas(probabilities: Tensor, size: tuple[int, int], card: Card) -> tuple[dict[str, Any], Tensor]:
    whole = F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
    counts = torch.bincount(whole.flatten(), minlength=len(card.classes)).tolist()
    return {"pixels": dict(zip(card.classes, counts, strict=True))}, whole


def draw_prediction(image: Tensor, raw: Any, row: dict[str, Any], data: DataConfig, classes: list[str]) -> Image.Image:
    """Draw a prediction over its image, enlarged to 256 pixels at least."""
    factor = max(1, -(-256 // max(image.shape[1:])))
    canvas = (image.expand(3, -1, -1) * 255).round().to(torch.uint8)
    canvas = canvas.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    if data.task == "detection" and row["objects"]:
        names = [f"{o['class']} {o['score']:.2f}" for o in row["objects"]]
        colours = [PALETTE[classes.index(o["class"]) % len(PALETTE)] for o in row["objects"]]
        canvas = draw_bounding_boxes(canvas, raw["boxes"] * factor, names, colours, width=2)
    elif data.task == "segmentation":
        enlarged = raw.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        masks = torch.stack([enlarged == n for n in range(1, len(classes))])
        canvas = draw_segmentation_masks(canvas, masks, alpha=0.5, colors=[PALETTE[n % 8] for n in range(len(masks))])
    picture = Image.fromarray(canvas.permute(1, 2, 0).numpy())
    if data.task == "classification":
        ImageDraw.Draw(picture).text((6, 6), f"{row['prediction']} {row['confidence']:.0%}", fill="#ffb000")
    return picture
