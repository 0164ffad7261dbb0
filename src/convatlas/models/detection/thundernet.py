"""ThunderNet: a two-stage detector for phones, a light head on SNet.

Qin, Li, Zhang, Bao, Yu, Peng, Sun, "ThunderNet: Towards Real-time Generic Object Detection" (ICCV 2019), section 3.2.
The context enhancement module adds up what the backbone sees at three scales; the region proposal network looks at the
sum, and the spatial attention module uses what it finds to weigh the sum once more. Position-sensitive pooling
(Li et al., "Light-Head R-CNN", arXiv 1711.07264) leaves 245 values of each region for one fully connected layer.
Anchors, matching, sampling, decoding, suppression and pooling are torchvision's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import PSRoIAlign

from convatlas.core.errors import near_matches
from convatlas.models.checks import require_all_positive, require_choice, require_object_classes
from convatlas.models.classification.snet import VARIANTS, SNet
from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.models.layers.detector_transform import FixedSizeTransform

BACKBONES = {f"snet{name}": variant for name, variant in VARIANTS.items()}
BINS = 7
"""A region is pooled into 7 x 7 bins, and every bin has channels of its own."""
SAMPLES = 2
"""Points along each side of a bin that are averaged, as in the authors' code."""
MIN_SCORE = 0.05
MAX_DETECTIONS = 100


class ContextEnhancement(nn.Module):
    """The context enhancement module: three scales, each brought to the same channels, are added up.

    C4 `(B, c4, H, W)`, C5 `(B, c5, H/2, W/2)` and the global mean of C5 become `(B, channels, H, W)`; neither
    normalisation nor activation.
    """

    def __init__(self, c4_channels: int, c5_channels: int, channels: int) -> None:
        super().__init__()
        self.of_c4 = nn.Conv2d(c4_channels, channels, 1)
        self.of_c5 = nn.Conv2d(c5_channels, channels, 1)
        self.of_global = nn.Conv2d(c5_channels, channels, 1)

    def forward(self, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor]:
        enlarged = F.interpolate(self.of_c5(c5), scale_factor=2.0, mode="nearest")
        context = self.of_c4(c4) + enlarged + self.of_global(c5.mean((2, 3), keepdim=True))
        return context, context  # proposals and regions are made of the same map


class SqueezedMaps(nn.Module):
    """What the paper compares it with: proposals are made of C4 alone, regions of C5 alone, enlarged to the size of C4.

    Both get the same channels by a 1x1 convolution.
    """

    def __init__(self, c4_channels: int, c5_channels: int, channels: int) -> None:
        super().__init__()
        self.of_c4 = nn.Conv2d(c4_channels, channels, 1)
        self.of_c5 = nn.Conv2d(c5_channels, channels, 1)

    def forward(self, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor]:
        return self.of_c4(c4), F.interpolate(self.of_c5(c5), scale_factor=2.0, mode="nearest")


class ProposalConvolutions(nn.Sequential):
    """The compressed first layer of the proposal network; `(B, channels, H, W) -> (B, width, H, W)`.

    A 5x5 depthwise and a 1x1 convolution, each with batch norm and ReLU, stand for a 3x3 convolution of 256 channels.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(*ConvNormAct(channels, channels, 5, groups=channels), *ConvNormAct(channels, width))


class SpatialAttention(nn.Module):
    """The spatial attention module: a map times the sigmoid of what the proposal network knows."""

    def __init__(self, proposal_width: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(proposal_width, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, proposal_features: Tensor) -> Tensor:
        """`x (B, channels, H, W)` and `proposal_features (B, proposal_width, H, W)` become a map like `x`."""
        return x * torch.sigmoid(self.norm(self.conv(proposal_features)))


class ThunderNetMaps(nn.Module):
    """All that is computed once for an image: backbone, context, the proposal network's features, attention.

    Args:
        channels: of the map that regions are pooled from.
        context_enhancement: use the context enhancement module, otherwise `SqueezedMaps`.
        spatial_attention: use the spatial attention module.
    """

    def __init__(
        self, backbone: SNet, channels: int, proposal_width: int, *, context_enhancement: bool, spatial_attention: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.context = (ContextEnhancement if context_enhancement else SqueezedMaps)(*backbone.map_channels, channels)
        self.proposal_convolutions = ProposalConvolutions(channels, proposal_width)
        self.attention = SpatialAttention(proposal_width, channels) if spatial_attention else None
        self.out_channels = channels  # torchvision asks every backbone for it

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps `proposals` and `regions`, both of C4's size, for images that divide by C5's stride."""
        for_proposals, regions = self.context(*self.backbone.forward_maps(images))
        proposals = self.proposal_convolutions(for_proposals)
        if self.attention is not None:
            regions = self.attention(regions, proposals)
        return {"proposals": proposals, "regions": regions}


class ProposalPredictor(nn.Module):
    """Two logits and four offsets of every anchor, by 1x1 convolutions.

    The paper's cost allows for two logits, background and object. Torchvision's network wants one, and gets their
    difference: its sigmoid and its cross-entropy are the softmax's and the two-class cross-entropy, exactly.
    """

    def __init__(self, width: int, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors
        self.logits = nn.Conv2d(width, 2 * anchors, 1)
        self.offsets = nn.Conv2d(width, 4 * anchors, 1)
        for layer in (self.logits, self.offsets):
            initialise_prediction(layer, std=0.01)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """`(B, width, H, W)` becomes `(B, anchors, H, W)` and `(B, 4 * anchors, H, W)`, map by map."""
        objectness = []
        for x in maps:
            background, an_object = self.logits(x).split(self.anchors, dim=1)
            objectness.append(an_object - background)
        return objectness, [self.offsets(x) for x in maps]


class ProposalNetwork(RegionProposalNetwork):
    """Torchvision's proposal network on the map that is made for it."""

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return each image's proposals `(n, 4)`, and in training the losses."""
        return super().forward(images, {"proposals": features["proposals"]}, targets)


class RegionPooling(nn.Module):
    """Position-sensitive pooling: bin (i, j) of output o averages channel `(o * bins + i) * bins + j` of the map.

    `(B, outputs * bins * bins, H, W)` and n regions in all become `(n, outputs, bins, bins)`.
    """

    def __init__(self, stride: int, bins: int = BINS) -> None:
        super().__init__()
        self.pool = PSRoIAlign((bins, bins), 1 / stride, SAMPLES)

    def forward(self, features: dict[str, Tensor], regions: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        """Pool `regions`, one tensor of boxes `(n, 4)` in pixels an image; torchvision hands on `image_sizes` too."""
        return self.pool(features["regions"], regions)


class RegionPredictor(nn.Module):
    """Class logits and box offsets of every region; `(n, width)` becomes `(n, classes)` and `(n, 4 * classes)`.

    With class-agnostic boxes four offsets are computed and stand for every class.
    """

    def __init__(self, width: int, num_classes: int, class_agnostic_boxes: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_agnostic_boxes = class_agnostic_boxes
        self.logits = nn.Linear(width, num_classes)
        self.offsets = nn.Linear(width, 4 if class_agnostic_boxes else 4 * num_classes)
        initialise_prediction(self.logits, std=0.01)
        initialise_prediction(self.offsets, std=0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        offsets = self.offsets(x)
        return self.logits(x), offsets.repeat(1, self.num_classes) if self.class_agnostic_boxes else offsets


def initialise_prediction(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    """Draw normal weights, so small that nothing is predicted at first, and set the biases to 0."""
    nn.init.normal_(layer.weight, std=std)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


class HardestRegions(RoIHeads):
    """Region head with online hard example mining (Shrivastava, Gupta, Girshick, CVPR 2016).

    In training every region is computed, and the losses are those of each image's regions of the highest loss; without
    mining, which is torchvision's own class, the regions are drawn at random, a quarter of them with objects.
    """

    def subsample(self, labels: list[Tensor]) -> list[Tensor]:
        """Return every region that is of an object or of the background."""
        return [torch.where(each >= 0)[0] for each in labels]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the detections, or in training the losses; see torchvision's `RoIHeads`."""
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        regions, _, labels, offsets = self.select_training_samples(proposals, targets)
        logits, predicted = self.box_predictor(self.box_head(self.box_roi_pool(features, regions, image_shapes)))
        class_loss, box_loss = losses_of_regions(logits, predicted, torch.cat(labels), torch.cat(offsets))
        kept = hardest(class_loss + box_loss, [len(each) for each in labels], self.fg_bg_sampler.batch_size_per_image)
        return [], {"loss_classifier": class_loss[kept].mean(), "loss_box_reg": box_loss[kept].mean()}


def losses_of_regions(logits: Tensor, offsets: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and the box loss of each region; their means are torchvision's losses.

    Args:
        logits: `(n, classes)`, and `offsets` `(n, 4 * classes)`.
        labels: `(n,)`, 0 for the background, whose boxes cost nothing.
        wanted: offsets of each region's own object, `(n, 4)`.
    """
    own = offsets.unflatten(1, (-1, 4))[torch.arange(len(labels), device=labels.device), labels]
    box_loss = F.smooth_l1_loss(own, wanted, beta=1 / 9, reduction="none").sum(1)
    return F.cross_entropy(logits, labels, reduction="none"), torch.where(labels > 0, box_loss, 0)


def hardest(losses: Tensor, of_image: list[int], count: int) -> Tensor:
    """Return the numbers of the highest of `losses (n,)`, at most `count` of the `of_image` of each image."""
    first, taken = 0, []
    for each in losses.detach().split(of_image):
        taken.append(first + each.topk(min(count, len(each))).indices)
        first += len(each)
    return torch.cat(taken)


def region_layers(inputs: int, width: int, layers: int) -> nn.Sequential:
    """Build the fully connected layers of the head; `(n, channels, bins, bins) -> (n, width)`."""
    head = nn.Sequential(nn.Flatten())
    for number in range(layers):
        head.extend([nn.Linear(width if number else inputs, width), nn.ReLU()])
    return head


def thundernet(
    *,
    backbone: str = "snet49",
    backbone_options: dict[str, Any] | None = None,
    context_enhancement: bool = True,
    spatial_attention: bool = True,
    proposal_width: int = 256,
    pooled_channels: int = 5,
    head_width: int = 1024,
    head_layers: int = 1,
    class_agnostic_boxes: bool = True,
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0),
    anchor_ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 4 / 3, 2.0),
    candidates: int = 2000,
    training_proposals: int = 2000,
    proposals: int = 200,
    hard_mining: bool = True,
    training_regions: int = 256,
    image_size: int = 320,
    num_classes: int = 81,
    in_channels: int = 3,
) -> nn.Module:
    """Build a ThunderNet without trained weights.

    Its losses are `loss_objectness` and `loss_rpn_box_reg` of the proposals, `loss_classifier` and `loss_box_reg` of
    the regions.

    The authors' published code has another head than the paper: that is `head_layers=2, class_agnostic_boxes=False,
    hard_mining=False, training_regions=512`.

    Args:
        backbone: `snet49`, `snet146` or `snet535`.
        backbone_options: arguments of `SNet` other than that variant's, for example `{stem_stride: 2}`.
        context_enhancement: use the context enhancement module; otherwise proposals see C4 and regions see C5.
        spatial_attention: use the spatial attention module.
        pooled_channels: channels of a pooled region; each needs 49 of the map, 245 in the paper.
        head_width: units of the head's fully connected layers.
        class_agnostic_boxes: predict one box a region, and not one for each class.
        anchor_sizes: side of the square anchors, in pixels.
        anchor_ratios: their heights over their widths.
        candidates: the top-scoring anchors of an image, from which overlapping ones are taken out.
        training_proposals: most proposals of an image that are left, in training.
        proposals: most proposals of an image in evaluation.
        hard_mining: train on the regions of the highest loss, as in the paper, and not on random ones.
        training_regions: how many regions of an image are trained on.
        image_size: side of the images in pixels; they are not rescaled, but padded to a multiple of C5's stride.
    """
    require_all_positive(proposal_width=proposal_width, pooled_channels=pooled_channels, head_width=head_width)
    require_all_positive(head_layers=head_layers, candidates=candidates, training_proposals=training_proposals)
    require_all_positive(proposals=proposals, training_regions=training_regions, image_size=image_size)
    require_object_classes(num_classes)
    require_above_zero("anchor_sizes", anchor_sizes)
    require_above_zero("anchor_ratios", anchor_ratios)
    body = make_backbone(backbone, backbone_options or {}, in_channels)
    channels = pooled_channels * BINS**2
    modules = {"context_enhancement": context_enhancement, "spatial_attention": spatial_attention}
    maps = ThunderNetMaps(body, channels, proposal_width, **modules)
    anchors = AnchorGenerator((tuple(anchor_sizes),), (tuple(anchor_ratios),))
    proposal_network = ProposalNetwork(
        anchors,
        ProposalPredictor(proposal_width, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": candidates, "testing": candidates},
        post_nms_top_n={"training": training_proposals, "testing": proposals},
        nms_thresh=0.7,
    )
    region_heads = (HardestRegions if hard_mining else RoIHeads)(
        box_roi_pool=RegionPooling(body.map_strides[0]),
        box_head=region_layers(channels, head_width, head_layers),
        box_predictor=RegionPredictor(head_width, num_classes, class_agnostic_boxes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=training_regions,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=MIN_SCORE,
        nms_thresh=0.5,
        detections_per_img=MAX_DETECTIONS,
    )
    transform = FixedSizeTransform(image_size, in_channels, size_divisible=body.map_strides[1])
    return GeneralizedRCNN(maps, proposal_network, region_heads, transform)


def make_backbone(name: str, options: Mapping[str, Any], in_channels: int) -> SNet:
    """Build an SNet without its classifier."""
    require_choice("backbone", name, BACKBONES)
    arguments = {**asdict(BACKBONES[name]), **options}
    known = ("stage_channels", "last_channels", "stem_channels", "stem_stride", "repeats")
    for option in options:
        if option not in known:
            raise ValueError(f"model.backbone_options.{option}: there is no such option. {near_matches(option, known)}")
    body = SNet(**arguments, num_classes=1, in_channels=in_channels)
    body.classifier = nn.Identity()
    return body


def require_above_zero(option: str, values: Sequence[float]) -> None:
    """Raise a ValueError unless there are values, given as `model.<option>`, and each is above 0."""
    if not values or min(values) <= 0:
        raise ValueError(f"model.{option}={list(values)} must be one number or more, each above 0.")
