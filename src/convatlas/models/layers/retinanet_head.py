"""RetinaNet as the SpineNet paper trains it: one head for all levels with a normalisation of its own for each.

Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection" (ICCV 2017), sections 3 and 4, is the
detector. Du et al., "SpineNet" (CVPR 2020), section 4.1, and the authors' published code change the head (batch
normalisation, initial weights) and the losses (gamma 1.5, Huber loss of weight 50, sums over the whole batch).
"""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou, sigmoid_focal_loss

from convatlas.models.checks import require_above_zero, require_all_positive, require_object_classes
from convatlas.models.layers.detector_transform import FixedSizeTransform

PRIOR = 0.01
"""Every class's probability at every anchor before the first step: its bias is -log(99)."""
SIZES_PER_OCTAVE = 3
SHAPES = (0.5, 1.0, 2.0)
OVERLAP = 0.5
"""IoU with an object from which an anchor is its own; below, it is background. An object's best anchor is its own."""


def shared_convolution(in_channels: int, out_channels: int, *, std: float, bias: float = 0.0) -> nn.Conv2d:
    """Build a 3x3 convolution with normally distributed weights and equal biases."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(convolution.weight, std=std)
    assert convolution.bias is not None
    nn.init.constant_(convolution.bias, bias)
    return convolution


class LevelNormTower(nn.Module):
    """`convs` convolutions that all levels share, each followed by a normalisation of the level and an activation.

    The convolutions have biases, without use before a normalisation, because the authors' have them.
    """

    def __init__(self, in_channels: int, *, width: int, convs: int, levels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            shared_convolution(width if number else in_channels, width, std=0.01) for number in range(convs)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(width, eps=1e-3) for _ in range(convs)) for _ in range(levels)
        )
        self.activation = activation()

    def forward(self, x: Tensor, level: int) -> Tensor:
        """`(B, in, H, W) -> (B, width, H, W)` for the map of that number."""
        norms: Any = self.norms[level]
        for convolution, norm in zip(self.convs, norms, strict=True):
            x = self.activation(norm(convolution(x)))
        return x


class LevelNormHead(nn.Module):
    """Class logits and box offsets of every anchor; the weights are shared by all levels, the normalisation is not.

    Args:
        anchors: anchors of every pixel.
        object_classes: classes without the background.
        tower: see `LevelNormTower`.
    """

    def __init__(self, in_channels: int, *, width: int, anchors: int, object_classes: int, **tower: Any) -> None:
        super().__init__()
        self.object_classes = object_classes
        self.class_tower, self.box_tower = (LevelNormTower(in_channels, width=width, **tower) for _ in range(2))
        bias = -math.log((1 - PRIOR) / PRIOR)
        self.class_logits = shared_convolution(width, anchors * object_classes, std=1e-5, bias=bias)
        self.box_offsets = shared_convolution(width, anchors * 4, std=1e-5)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return, over all levels, `cls_logits: (B, anchors, classes)` and `bbox_regression: (B, anchors, 4)`."""
        logits, offsets = [], []
        for level, x in enumerate(features):
            logits.append(by_anchor(self.class_logits(self.class_tower(x, level)), self.object_classes))
            offsets.append(by_anchor(self.box_offsets(self.box_tower(x, level)), 4))
        return {"cls_logits": torch.cat(logits, 1), "bbox_regression": torch.cat(offsets, 1)}


def by_anchor(x: Tensor, values: int) -> Tensor:
    """`(B, anchors * values, H, W) -> (B, H * W * anchors, values)`, in the order of the anchors."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)


class CentredAnchors(AnchorGenerator):
    """Anchors in the middle of their cells; torchvision's are at the upper left corners.

    The nine of a cell are three sizes within an octave, each in three shapes; rounded to whole pixels by torchvision.
    A cell is the image's side by the map's.

    Args:
        strides: of the maps, for the sizes.
        scale: side of a map's smallest square, in strides.
    """

    def __init__(self, strides: Sequence[int], scale: float) -> None:
        sizes = tuple(
            tuple(scale * stride * 2 ** (part / SIZES_PER_OCTAVE) for part in range(SIZES_PER_OCTAVE))
            for stride in strides
        )
        super().__init__(sizes, (SHAPES,) * len(sizes))

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        corners = super().grid_anchors(grid_sizes, strides)
        halves = [torch.stack((x, y, x, y)) / 2 for y, x in strides]
        return [anchors + half.to(anchors) for anchors, half in zip(corners, halves, strict=True)]


class RetinaNetOptions(TypedDict, total=False):
    """What `LevelNormRetinaNet` takes beside backbone and head."""

    anchor_scale: float
    focal_alpha: float
    focal_gamma: float
    huber_delta: float
    box_weight: float
    image_size: int
    size_divisible: int
    num_classes: int


class LevelNormRetinaNet(RetinaNet):
    """RetinaNet with this head and these losses; matching, decoding and suppression are torchvision's.

    Args:
        backbone: gives maps, the finest first, and has their `out_channels` and `strides`.
        anchor_scale: side of a level's smallest square anchor, in strides of the level; 4 for SpineNet-143 and 190.
        focal_alpha: weight of the objects in the focal loss; the background has the rest to 1.
        focal_gamma: exponent of the focal loss; the larger, the less well classified anchors count.
        huber_delta: error of an offset from which the box loss is linear.
        box_weight: factor on the box loss.
        size_divisible: images are padded with zeros, at the right and at the bottom, to a multiple of this. With 128
            every map of the paper's net is as large as its stride says; with less the coarsest are rounded up.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head_width: int,
        head_convs: int,
        activation: type[nn.Module],
        anchor_scale: float = 3.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 1.5,
        huber_delta: float = 0.1,
        box_weight: float = 50.0,
        image_size: int = 640,
        size_divisible: int = 128,
        num_classes: int = 91,
        in_channels: int = 3,
    ) -> None:
        require_all_positive(head_width=head_width, head_convs=head_convs, size_divisible=size_divisible)
        require_above_zero(anchor_scale=anchor_scale, huber_delta=huber_delta, box_weight=box_weight)
        if not 0 < focal_alpha < 1:
            raise ValueError(f"model.focal_alpha={focal_alpha} must be between 0 and 1; the paper takes 0.25.")
        if focal_gamma < 0:
            raise ValueError(f"model.focal_gamma={focal_gamma} must be 0 or more; the paper takes 1.5.")
        require_object_classes(num_classes)
        strides: tuple[int, ...] = backbone.strides  # type: ignore[assignment]
        width: int = backbone.out_channels  # type: ignore[assignment]
        anchors = CentredAnchors(strides, anchor_scale)
        head = LevelNormHead(
            width,
            width=head_width,
            anchors=anchors.num_anchors_per_location()[0],
            object_classes=num_classes - 1,
            convs=head_convs,
            levels=len(strides),
            activation=activation,
        )
        super().__init__(
            backbone,
            num_classes,
            anchor_generator=anchors,
            head=head,
            fg_iou_thresh=OVERLAP,
            bg_iou_thresh=OVERLAP,
            detections_per_img=100,
        )
        self.transform = FixedSizeTransform(image_size, in_channels, size_divisible)
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.huber_delta, self.box_weight = huber_delta, box_weight

    def dense_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Compute logits and offsets of all anchors, of `images: (B, C, H, W)` of a size that needs no padding."""
        outputs: dict[str, Tensor] = self.head(list(self.backbone(images).values()))
        return outputs

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Return the losses, divided by one more than the anchors with an object in the whole batch."""
        logits, offsets = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        classes = torch.zeros_like(logits)
        box_loss, owned = offsets.new_zeros(()), 0
        for number, (target, places) in enumerate(zip(targets, anchors, strict=True)):
            anchor, of_object = self._owned_anchors(target["boxes"], places)
            classes[number, anchor, target["labels"][of_object] - 1] = 1
            wanted = self.box_coder.encode_single(target["boxes"][of_object], places[anchor])
            box_loss = box_loss + F.huber_loss(offsets[number, anchor], wanted, reduction="sum", delta=self.huber_delta)
            owned += len(anchor)
        focal = sigmoid_focal_loss(logits, classes, self.focal_alpha, self.focal_gamma, reduction="sum")
        return {
            "classification": focal / (owned + 1),
            "bbox_regression": self.box_weight * box_loss / (4 * (owned + 1)),
        }

    def _owned_anchors(self, boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers of the anchors with an object, and those of their objects."""
        if len(boxes) == 0:
            none = torch.zeros(0, dtype=torch.int64, device=anchors.device)
            return none, none
        matched = self.proposal_matcher(box_iou(boxes, anchors))
        (anchor,) = torch.where(matched >= 0)
        return anchor, matched[anchor]

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Decode and suppress; the head has no logits of the background, and labels begin at 1."""
        found = super().postprocess_detections(head_outputs, anchors, image_shapes)
        return [{**each, "labels": each["labels"] + 1} for each in found]
