"""YOLOv3's detector on cross-stage partial backbones.

Redmon, Farhadi, "YOLOv3: An Incremental Improvement" (2018), section 2: three anchors at each of three scales; an
object belongs to the one anchor that is most like it in shape, in the cell that holds the object's centre. Wang et al.,
"CSPNet" (CVPR Workshops 2020), section 4.3, put CSP backbones, PANet with SPP, or their Exact Fusion Model before it;
the nets on PANet follow the authors' published darknet files (csresnext50-panet-spp.cfg and others).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import (
    FeaturePyramidNetwork,
    batched_nms,
    box_convert,
    box_iou,
    clip_boxes_to_image,
    complete_box_iou_loss,
    generalized_box_iou_loss,
)

from convatlas.models.checks import require_choice, require_object_classes
from convatlas.models.classification import csp, darknet
from convatlas.models.classification.darknet import StagedNet
from convatlas.models.layers.conv_norm import conv_norm, initialise_convolutions
from convatlas.models.layers.detector_transform import FixedSizeTransform
from convatlas.models.layers.path_aggregation import PathAggregation
from convatlas.models.layers.scale_fusion import exact_fusion, global_fusion

BACKBONES: dict[str, Callable[..., StagedNet]] = {
    "csp_resnet50": csp.csp_resnet50,
    "csp_resnext50": csp.csp_resnext50,
    "csp_darknet53": csp.csp_darknet53,
    "csp_densenet": csp.csp_densenet,
    "darknet_resnet50": darknet.darknet_resnet50,
    "darknet_resnext50": darknet.darknet_resnext50,
    "darknet53": darknet.darknet53,
}
BOX_LOSSES = ("squared", "giou", "ciou")

Anchors = tuple[tuple[tuple[float, float], ...], ...]
"""Width and height in pixels of each anchor, by level, the finest first."""
COCO_ANCHORS: Anchors = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
"""YOLOv3's, found by k-means on COCO's boxes in images of 416 pixels."""

MAX_LOGARITHM = math.log(1000 / 16)
"""A box is at most e to this power as large as its anchor, as torchvision bounds it, so that exp does not overflow."""
FIRST_OBJECTNESS = 0.01
"""What every place says at first; with darknet's 0.5 the empty ones dominate the first steps (Lin et al. 2017)."""


# ---- boxes and anchors ----------------------------------------------------------------------------------------------


class Priors(NamedTuple):
    """One row for each of the N places of all levels, in the order level, row, column, anchor."""

    corners: Tensor  # `(N, 2)` x and y of the cell's upper left corner, in pixels
    strides: Tensor  # `(N, 1)` side of the cell, in pixels
    anchors: Tensor  # `(N, 2)` width and height, in pixels


def make_priors(sizes: Sequence[tuple[int, int]], strides: Sequence[int], anchors: Tensor) -> Priors:
    """Lay `anchors (levels, A, 2)` on the cells of every level, given rows and columns of each map and its stride."""
    device = anchors.device
    corners, sides, shapes = [], [], []
    for (rows, columns), stride, here in zip(sizes, strides, anchors, strict=True):
        y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        grid = torch.stack([x, y], -1).reshape(-1, 1, 2).to(anchors.dtype) * stride
        corners.append(grid.expand(-1, len(here), 2).reshape(-1, 2))
        shapes.append(here.expand(rows * columns, -1, 2).reshape(-1, 2))
        sides.append(here.new_full((rows * columns * len(here), 1), stride))
    return Priors(torch.cat(corners), torch.cat(sides), torch.cat(shapes))


def decode(outputs: Tensor, priors: Priors) -> Tensor:
    """Turn the net's outputs into boxes: the centre is in the cell, the size a multiple of the anchor's.

    `(..., N, 4)`, two logits of the centre's place in its cell and two logarithms of size over anchor, to boxes
    `x1, y1, x2, y2` in pixels, for priors of the same N places.
    """
    centres = priors.corners + outputs[..., :2].sigmoid() * priors.strides
    sizes = priors.anchors * outputs[..., 2:].clamp(max=MAX_LOGARITHM).exp()
    return torch.cat([centres - sizes / 2, centres + sizes / 2], -1)


def encode(boxes: Tensor, priors: Priors) -> Tensor:
    """Return what the net should say of boxes, the centre from 0 to 1; the inverse of `decode` but for a sigmoid."""
    cxcywh = box_convert(boxes, "xyxy", "cxcywh")
    offsets = (cxcywh[..., :2] - priors.corners) / priors.strides
    return torch.cat([offsets, (cxcywh[..., 2:] / priors.anchors).log()], -1)


def best_anchors(sizes: Tensor, anchors: Tensor) -> Tensor:
    """Return for widths and heights `(G, 2)` the row of `anchors: (A, 2)` with the largest IoU of concentric boxes."""
    corners = torch.cat([torch.zeros_like(sizes), sizes], 1), torch.cat([torch.zeros_like(anchors), anchors], 1)
    return box_iou(*corners).argmax(1)


def assign(
    boxes: Tensor, anchors: Tensor, sizes: Sequence[tuple[int, int]], strides: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Find the place that is responsible for each box: exactly one, of the anchor most like it and its centre's cell.

    Where two boxes ask for the same place the later one has it, as in darknet.

    Args:
        boxes: `(G, 4)` `x1, y1, x2, y2` in pixels.
        anchors: `(levels, A, 2)`.
        sizes: rows and columns of each level's map, whose cells have `strides` pixels.

    Returns:
        Whether each box has its place, `(G,)` bool, and the places: rows of `make_priors`. No size depends on values,
        so that a GPU need not be waited for.
    """
    device, count = boxes.device, anchors.shape[1]
    cxcywh = box_convert(boxes, "xyxy", "cxcywh")
    best = best_anchors(cxcywh[:, 2:], anchors.flatten(0, 1))
    level = best // count
    rows, columns = torch.tensor(sizes, device=device).unbind(1)
    first = torch.cat([rows.new_zeros(1), (rows * columns * count).cumsum(0)[:-1]])
    cells = (cxcywh[:, :2] / torch.tensor(strides, device=device)[level, None]).floor().long()
    column, row = (  # a centre on the right or lower border belongs to the last cell
        cells[:, axis].clamp(min=0).minimum(limit[level] - 1) for axis, limit in enumerate((columns, rows))
    )
    places = first[level] + (row * columns[level] + column) * count + best % count
    numbers = torch.arange(len(boxes), device=device)
    owners = numbers.new_full((sum(height * width for height, width in sizes) * count,), -1)
    owners.scatter_reduce_(0, places, numbers, "amax")
    return owners[places] == numbers, places


# ---- the losses -----------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """The places of all G objects in a batch of B images."""

    images: Tensor  # `(G,)` row of the image
    places: Tensor  # `(G,)` row of the priors
    owns: Tensor  # `(G,)` whether the object has the place, or another that asks for the same one
    boxes: Tensor  # `(G, 4)` the object's box
    labels: Tensor  # `(G,)` its class, from 0
    ignored: Tensor
    """`(B, N)` whether a place without an object overlaps one so well that the objectness loss leaves it out."""


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the cross-entropy of sigmoid(logits) and `wanted` in [0, 1], less the least that it can be.

    Its gradient is the cross-entropy's (and darknet's), and a perfect prediction has loss 0 also for fractions.
    """
    with torch.autocast(wanted.device.type, enabled=False):  # CUDA's autocast does not allow it; `wanted` is float32
        entropy = F.binary_cross_entropy(wanted, wanted, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") - entropy


def squared_box_loss(outputs: Tensor, boxes: Tensor, priors: Priors, image_size: int) -> Tensor:
    """Return YOLOv3's loss of each box `(P,)`: cross-entropy of the place in the cell, squared error of the logarithms.

    Small boxes weigh up to twice as much as one that fills the image, as in darknet.
    """
    wanted = encode(boxes, priors)
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    weight = 2 - width * height / image_size**2
    place = divergence(outputs[:, :2], wanted[:, :2].clamp(0, 1)).sum(1)
    return weight * (place + (outputs[:, 2:] - wanted[:, 2:]).square().sum(1) / 2)


# ---- the net --------------------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """torchvision's feature pyramid (Lin et al., CVPR 2017) with lists instead of names; all maps have one width."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(in_channels), channels)
        self.out_channels = (channels,) * len(in_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return list(self.pyramid(OrderedDict((str(number), each) for number, each in enumerate(maps))).values())


class YoloOptions(TypedDict, total=False):
    """What `yolo` hands on to `Yolo`."""

    box_loss: str
    ignore_overlap: float
    score_threshold: float
    nms_threshold: float
    detections_per_image: int


class Yolo(nn.Module):
    """Backbone, neck, and a head of its own for each scale.

    The losses are `box`, `objectness` and `classification`, sums over an image's places, means over the images.

    Args:
        backbone: its last stages, as many as there are levels of anchors, are used.
        neck: takes and returns one map a level; tells its `out_channels`.
        image_size: side of the images; they are padded to a multiple of the last stride.
        box_loss: `squared` (YOLOv3's, the paper's), `giou` or `ciou` (the authors' later files).
        ignore_overlap: IoU from which the objectness loss leaves out a place without an object of its own.
        score_threshold: least score (objectness times class probability) of a detection.
        nms_threshold: IoU from which the lower-scoring of two detections of a class is dropped.
        detections_per_image: most detections of an image.
    """

    anchors: Tensor

    def __init__(
        self,
        backbone: StagedNet,
        neck: nn.Module,
        *,
        anchors: Anchors,
        num_classes: int,
        image_size: int,
        in_channels: int,
        box_loss: str = "squared",
        ignore_overlap: float = 0.7,
        score_threshold: float = 0.005,
        nms_threshold: float = 0.45,
        detections_per_image: int = 100,
    ) -> None:
        super().__init__()
        require_choice("box_loss", box_loss, BOX_LOSSES)
        for name, value in {"ignore_overlap": ignore_overlap, "nms_threshold": nms_threshold}.items():
            if not 0 < value <= 1:
                raise ValueError(f"model.{name}={value} is an overlap; choose above 0, up to 1.")
        backbone.classifier = nn.Identity()
        self.backbone = backbone
        self.neck = neck
        self.strides = backbone.stage_strides[-len(anchors) :]
        self.transform = FixedSizeTransform(image_size, in_channels, size_divisible=self.strides[-1])
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32), persistent=False)
        self.classes = num_classes - 1
        self.image_size = image_size
        self.box_loss = box_loss
        self.ignore_overlap = ignore_overlap
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        widths: Any = neck.out_channels
        self.heads = nn.ModuleList(self._head(width, len(anchors[0])) for width in widths)

    def _head(self, channels: int, anchors: int) -> nn.Sequential:
        """Build YOLOv3's head: a 3x3 convolution, and a 1x1 with four numbers, an objectness and the classes."""
        outputs = nn.Conv2d(2 * channels, anchors * (5 + self.classes), 1)
        head = nn.Sequential(conv_norm(channels, 2 * channels, 3), outputs)
        initialise_convolutions(head)
        assert outputs.bias is not None
        with torch.no_grad():
            objectness = outputs.bias.view(anchors, -1)[:, 4]
            objectness.fill_(-math.log((1 - FIRST_OBJECTNESS) / FIRST_OBJECTNESS))
            outputs.weight.mul_(0.1)  # so that the first boxes are about the anchors
        return head

    def forward(
        self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        batch, targets = self.transform(images, targets)
        outputs, sizes = self._outputs(batch.tensors)
        priors = make_priors(sizes, self.strides, self.anchors)
        if not self.training:
            return self._detections(outputs, priors)
        if targets is None:
            raise ValueError("data: a detector trains with targets; give boxes and labels of each image.")
        return self._losses(outputs, priors, self._find(outputs, priors, sizes, targets))

    def _outputs(self, images: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """Return the outputs of all places, `(B, N, 5 + classes)`, and rows and columns of each level's map.

        Boxes want more than 16 bits, whatever the convolutions are computed with.
        """
        maps = self.neck(self.backbone.forward_pyramid(images)[-len(self.heads) :])
        sizes = [(each.shape[2], each.shape[3]) for each in maps]
        flat = [
            head(each).float().permute(0, 2, 3, 1).reshape(len(images), -1, 5 + self.classes)
            for head, each in zip(self.heads, maps, strict=True)
        ]
        return torch.cat(flat, 1), sizes

    # ---- training

    @torch.no_grad()
    def _find(
        self, outputs: Tensor, priors: Priors, sizes: Sequence[tuple[int, int]], targets: Sequence[dict[str, Tensor]]
    ) -> Found:
        """Assign every image's objects, and see which other places already overlap one."""
        predicted = decode(outputs[..., :4], priors)
        ignored = torch.zeros(outputs.shape[:2], dtype=torch.bool, device=outputs.device)
        images, places, owns, boxes, labels = [], [], [], [], []
        for number, target in enumerate(targets):
            truth = target["boxes"].to(outputs)
            if len(truth) == 0:
                continue
            # On a GPU that would wait for it at every image; there boxes come from prepared data, which were checked.
            if not truth.is_cuda and (truth[:, 2:] <= truth[:, :2]).any():
                raise ValueError(f"data: image {number} of a batch has a box without area; leave such boxes out.")
            ignored[number] = box_iou(predicted[number], truth).amax(1) > self.ignore_overlap
            has_place, where = assign(truth, self.anchors, sizes, self.strides)
            images.append(torch.full_like(where, number))
            places.append(where)
            owns.append(has_place)
            boxes.append(truth)
            labels.append(target["labels"].to(outputs.device) - 1)
        nothing = torch.zeros(0, dtype=torch.int64, device=outputs.device)
        return Found(
            images=torch.cat([nothing, *images]),
            places=torch.cat([nothing, *places]),
            owns=torch.cat([nothing.bool(), *owns]),
            boxes=torch.cat([outputs.new_zeros(0, 4), *boxes]),
            labels=torch.cat([nothing, *labels]),
            ignored=ignored,
        )

    def _losses(self, outputs: Tensor, priors: Priors, found: Found) -> dict[str, Tensor]:
        """Compute the three terms; every class has a logit of its own, as YOLOv3 has it."""
        own = outputs[found.images, found.places]
        here = Priors(*(each[found.places] for each in priors))
        wanted = torch.zeros_like(outputs[..., 4])
        wanted[found.images, found.places] = 1
        counted = ~found.ignored | (wanted > 0)
        objectness = F.binary_cross_entropy_with_logits(outputs[..., 4], wanted, reduction="none")
        labels = found.labels[:, None] == torch.arange(self.classes, device=own.device)
        classes = F.binary_cross_entropy_with_logits(own[:, 5:], labels.to(own), reduction="none")
        sums = {
            "box": (self._box_losses(own[:, :4], found.boxes, here) * found.owns).sum(),
            "objectness": (objectness * counted).sum(),
            "classification": (classes * found.owns[:, None]).sum(),
        }
        return {name: value / len(outputs) for name, value in sums.items()}

    def _box_losses(self, outputs: Tensor, boxes: Tensor, priors: Priors) -> Tensor:
        if self.box_loss == "squared":
            return squared_box_loss(outputs, boxes, priors, self.image_size)
        loss = {"giou": generalized_box_iou_loss, "ciou": complete_box_iou_loss}[self.box_loss]
        return loss(decode(outputs, priors), boxes)

    # ---- evaluation

    def _detections(self, outputs: Tensor, priors: Priors) -> list[dict[str, Tensor]]:
        """Return the detections of each image, each class suppressed on its own; a place may show several classes."""
        every_box = clip_boxes_to_image(decode(outputs[..., :4], priors), (self.image_size, self.image_size))
        every_score = outputs[..., 4:5].sigmoid() * outputs[..., 5:].sigmoid()
        detections = []
        for boxes, scores in zip(every_box, every_score, strict=True):
            places, classes = (scores > self.score_threshold).nonzero().unbind(1)
            found = scores[places, classes]
            kept = batched_nms(boxes[places], found, classes, self.nms_threshold)[: self.detections_per_image]
            detections.append({"boxes": boxes[places[kept]], "labels": classes[kept] + 1, "scores": found[kept]})
        return detections


# ---- from options to nets -------------------------------------------------------------------------------------------


def _pyramid(in_channels: Sequence[int], channels: Sequence[int], _: int) -> Pyramid:
    if len(set(channels)) > 1:
        raise ValueError(
            f"model.neck_channels={list(channels)} must be equal for model.neck=fpn, whose maps are added."
        )
    return Pyramid(in_channels, channels[0])


NECKS: dict[str, Callable[[Sequence[int], Sequence[int], int], nn.Module]] = {
    "pan": PathAggregation,
    "fpn": _pyramid,
    "global": global_fusion,
    "exact": exact_fusion,
}


def yolo(
    *,
    backbone: str = "csp_resnext50",
    backbone_options: dict[str, Any] | None = None,
    neck: str = "pan",
    neck_channels: tuple[int, ...] = (128, 256, 512),
    neck_convolutions: int = 5,
    anchors: Anchors = COCO_ANCHORS,
    image_size: int = 416,
    num_classes: int = 81,
    in_channels: int = 3,
    **options: Unpack[YoloOptions],
) -> Yolo:
    """Build a detector without trained weights.

    Args:
        backbone: `csp_resnet50`, `csp_resnext50`, `csp_darknet53`, `csp_densenet`, `darknet_resnet50`,
            `darknet_resnext50` or `darknet53`.
        backbone_options: its keyword arguments, for example `{channels: [16, 32, 64]}`.
        neck: `pan` (PANet with SPP), `fpn` (torchvision's), `global` (fusion of all scales) or `exact` (the Exact
            Fusion Model); the last two are reconstructions.
        neck_channels: channels of the neck's map at each level, the finest first; as many levels, the backbone's last.
        neck_convolutions: convolutions where scales have met, odd; `fpn` has one of its own.
        anchors: width and height in pixels of each level's anchors, the finest level first.
        options: see `Yolo`.
    """
    require_choice("backbone", backbone, BACKBONES)
    require_choice("neck", neck, NECKS)
    if neck_convolutions < 1 or neck_convolutions % 2 == 0:
        raise ValueError(f"model.neck_convolutions={neck_convolutions} must be odd: 1x1 and 3x3 in turn, 1x1 last.")
    if len(neck_channels) != len(anchors):
        raise ValueError(
            f"model.neck_channels={list(neck_channels)} names {len(neck_channels)} levels and model.anchors "
            f"{len(anchors)}; give both for every level."
        )
    if len({len(level) for level in anchors}) != 1 or min(min(pair) for level in anchors for pair in level) <= 0:
        raise ValueError(f"model.anchors={anchors} must be pairs of positive pixels, as many at every level.")
    require_object_classes(num_classes)
    try:
        body = BACKBONES[backbone](**(backbone_options or {}), num_classes=1, in_channels=in_channels)
    except TypeError as error:
        raise ValueError(f"model.backbone_options={backbone_options}: {error}.") from error
    widths = body.stage_channels[-len(anchors) :]
    if len(widths) < len(anchors):
        raise ValueError(
            f"model.anchors has {len(anchors)} levels, and model.backbone={backbone} {len(widths)} stages."
        )
    middle = NECKS[neck](widths, neck_channels, neck_convolutions)
    if neck != "fpn":  # torchvision initialises its own
        initialise_convolutions(middle)
    return Yolo(
        body,
        middle,
        anchors=anchors,
        num_classes=num_classes,
        image_size=image_size,
        in_channels=in_channels,
        **options,
    )
