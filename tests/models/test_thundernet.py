"""ThunderNet: its cost by parts, context, attention, position-sensitive pooling, proposals, hard mining."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from convatlas.models.costs import measure_costs, on_meta_device
from convatlas.models.detection.thundernet import (
    ContextEnhancement,
    HardestRegions,
    ProposalPredictor,
    RegionPooling,
    RegionPredictor,
    SpatialAttention,
    SqueezedMaps,
    hardest,
    losses_of_regions,
    thundernet,
)

SIZE = 64


def small(**options: object) -> nn.Module:
    arguments: dict = {
        "backbone_options": {
            "stage_channels": (8, 16, 32),
            "last_channels": None,
            "stem_channels": 8,
            "stem_stride": 2,
            "repeats": (1, 1, 1),
        },
        "proposal_width": 16,
        "pooled_channels": 2,
        "head_width": 32,
        "anchor_sizes": (12, 24),
        "anchor_ratios": (1.0, 2.0),
        "training_proposals": 60,
        "proposals": 40,
        "training_regions": 16,
        "image_size": SIZE,
        "num_classes": 4,
        "in_channels": 1,
    }
    return thundernet(**(arguments | options))


@pytest.fixture
def images() -> list[Tensor]:
    return list(torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))


def target(boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def macs_of(module: nn.Module, *inputs: object) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


# ---- costs ----------------------------------------------------------------------------------------------------------


def test_the_parts_cost_what_the_paper_s_figures_imply() -> None:
    """At 320 pixels and 200 proposals, SNet146: 38.9 M for context, 68 M for proposals and attention."""
    net = on_meta_device(lambda: thundernet(backbone="snet146", num_classes=21)).eval()
    maps = net.backbone
    c4, c5 = (torch.zeros(1, c, s, s, device="meta") for c, s in ((264, 20), (528, 10)))
    context, for_proposals = torch.zeros(1, 245, 20, 20, device="meta"), torch.zeros(1, 256, 20, 20, device="meta")
    assert macs_of(maps.context, c4, c5) == 400 * 264 * 245 + 100 * 528 * 245 + 528 * 245 == 38_937_360  # 38.9 M
    proposals = macs_of(maps.proposal_convolutions, context) + macs_of(net.rpn.head, [for_proposals])
    assert proposals + macs_of(maps.attention, context, for_proposals) == 67_986_000  # 68 M


@pytest.mark.parametrize(("num_classes", "millions"), [(21, 55.3), (81, 67.6)])
def test_the_head_costs_55_3_million_on_voc_and_67_6_million_on_coco(num_classes: int, millions: float) -> None:
    heads = on_meta_device(lambda: thundernet(num_classes=num_classes)).roi_heads
    pooled = torch.zeros(200, 5, 7, 7, device="meta")
    macs = macs_of(heads.box_head, pooled) + macs_of(heads.box_predictor, torch.zeros(200, 1024, device="meta"))
    assert round(macs / 1e6, 1) == millions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "voc", "coco"), [("snet49", 251, 263), ("snet146", 490, 502), ("snet535", 1287, 1299)]
)
def test_the_whole_costs(backbone: str, voc: int, coco: int) -> None:
    """The paper prints 250, 461 and 1287 million for VOC and 262, 473 and 1300 for COCO."""
    for num_classes, millions in ((21, voc), (81, coco)):
        net = thundernet(backbone=backbone, num_classes=num_classes)
        assert round(measure_costs(net, (3, 320, 320)).macs / 1e6) == millions


def test_the_head_takes_245_values_and_the_published_head_has_a_second_layer_and_a_box_a_class() -> None:
    paper = on_meta_device(thundernet).roi_heads
    published = on_meta_device(lambda: thundernet(head_layers=2, class_agnostic_boxes=False)).roi_heads
    shapes = [
        [tuple(m.weight.shape) for m in heads.modules() if isinstance(m, nn.Linear)] for heads in (paper, published)
    ]
    assert shapes[0] == [(1024, 245), (81, 1024), (4, 1024)]
    assert shapes[1] == [(1024, 245), (1024, 1024), (81, 1024), (4 * 81, 1024)]


@pytest.mark.parametrize(("backbone", "c4", "c5"), [("snet49", 120, 512), ("snet146", 264, 528), ("snet535", 496, 992)])
def test_context_is_made_of_each_backbone_s_own_taps(backbone: str, c4: int, c5: int) -> None:
    context = on_meta_device(lambda: thundernet(backbone=backbone)).backbone.context
    assert [m.in_channels for m in context.children()] == [c4, c5, c5]
    assert {m.out_channels for m in context.children()} == {245}


# ---- modules --------------------------------------------------------------------------------------------------------


def test_context_is_the_sum_of_three_scales_without_norm_or_activation() -> None:
    torch.manual_seed(0)
    module = ContextEnhancement(6, 10, 8)
    c4, c5 = torch.randn(2, 6, 4, 6), torch.randn(2, 10, 2, 3)
    expected = torch.empty(2, 8, 4, 6)
    for i in range(4):
        for j in range(6):
            expected[:, :, i, j] = (
                c4[:, :, i, j] @ module.of_c4.weight[:, :, 0, 0].T
                + c5[:, :, i // 2, j // 2] @ module.of_c5.weight[:, :, 0, 0].T
                + c5.mean((2, 3)) @ module.of_global.weight[:, :, 0, 0].T
                + module.of_c4.bias
                + module.of_c5.bias
                + module.of_global.bias
            )
    for_proposals, regions = module(c4, c5)
    torch.testing.assert_close(for_proposals, expected)
    assert regions is for_proposals


def test_without_context_proposals_see_c4_alone_and_regions_see_c5_alone() -> None:
    torch.manual_seed(0)
    module = SqueezedMaps(6, 10, 8)
    c4, c5 = torch.randn(1, 6, 4, 4, requires_grad=True), torch.randn(1, 10, 2, 2, requires_grad=True)
    for_proposals, regions = module(c4, c5)
    assert for_proposals.shape == regions.shape == (1, 8, 4, 4)
    reach = [torch.autograd.grad(x.sum(), (c4, c5), allow_unused=True) for x in (for_proposals, regions)]
    assert [[g is not None for g in gradients] for gradients in reach] == [[True, False], [False, True]]


def test_attention_with_zero_weights_halves_the_map_exactly() -> None:
    module = SpatialAttention(16, 8).eval()  # batch norm is the identity up to its epsilon, and maps 0 to 0
    nn.init.zeros_(module.conv.weight)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(module(x, torch.randn(2, 16, 5, 5)), x * 0.5)


def test_attention_by_hand() -> None:
    torch.manual_seed(0)
    module = SpatialAttention(3, 4).train()
    x, known = torch.randn(2, 4, 5, 5), torch.randn(2, 3, 5, 5)
    y = F.conv2d(known, module.conv.weight)
    mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
    torch.testing.assert_close(module(x, known), x * torch.sigmoid((y - mean) / (variance + 1e-5).sqrt()))


def test_regions_are_weighed_by_the_proposal_network_s_own_features(images: list[Tensor]) -> None:
    torch.manual_seed(0)
    maps = small().backbone.eval()
    batch = torch.stack(images)
    given = maps(batch)
    context, _ = maps.context(*maps.backbone.forward_maps(batch))
    torch.testing.assert_close(given["proposals"], maps.proposal_convolutions(context))
    torch.testing.assert_close(given["regions"], maps.attention(context, given["proposals"]))
    maps.attention = None
    torch.testing.assert_close(maps(batch)["regions"], context)


def test_pooling_a_map_whose_channels_are_their_bin_s_number_gives_the_grid_of_bins() -> None:
    """Channel (o * 7 + i) * 7 + j belongs to output o and bin (i, j)."""
    bins = torch.arange(49.0)
    x = torch.cat([100 * o + bins for o in range(5)]).reshape(1, 245, 1, 1).expand(1, 245, 20, 20).contiguous()
    regions = [torch.tensor([[32.0, 48.0, 256.0, 192.0], [64.0, 64.0, 120.0, 300.0]])]
    pooled = RegionPooling(stride=16)({"regions": x}, regions, [(320, 320)])
    expected = torch.stack([100 * o + bins.reshape(7, 7) for o in range(5)])
    torch.testing.assert_close(pooled, expected.expand(2, 5, 7, 7))


def test_pooling_reads_where_the_region_is() -> None:
    """Of a ramp along the width, bin (i, j) averages the middle of its column of the region."""
    columns = torch.arange(20.0).expand(1, 49, 20, 20).contiguous()
    pooled = RegionPooling(stride=16)({"regions": columns}, [torch.tensor([[32.0, 48.0, 256.0, 192.0]])], [(320, 320)])
    middles = torch.tensor([(32 + (j + 0.5) * 32) / 16 - 0.5 for j in range(7)])
    torch.testing.assert_close(pooled[0, 0], middles.expand(7, 7))


def test_the_difference_of_two_logits_is_the_softmax_of_background_and_object() -> None:
    torch.manual_seed(0)
    predictor = ProposalPredictor(8, anchors=3)
    x = torch.randn(2, 8, 4, 4)
    (objectness,), (offsets,) = predictor([x])
    both = predictor.logits(x).unflatten(1, (2, 3)).double()
    torch.testing.assert_close(objectness.double().sigmoid(), both.softmax(1)[:, 1])
    is_object = torch.rand(2, 3, 4, 4) < 0.5
    wanted = F.cross_entropy(both, is_object.long())
    torch.testing.assert_close(F.binary_cross_entropy_with_logits(objectness.double(), is_object.double()), wanted)
    assert offsets.shape == (2, 12, 4, 4)


def test_class_agnostic_boxes_are_the_same_for_every_class() -> None:
    torch.manual_seed(0)
    predictor = RegionPredictor(8, 5, class_agnostic_boxes=True)
    logits, offsets = predictor(torch.randn(3, 8))
    assert logits.shape == (3, 5)
    assert predictor.offsets.out_features == 4
    of_classes = offsets.unflatten(1, (5, 4))
    assert of_classes.std(1).max() == 0
    assert of_classes.std(2).min() > 0


# ---- training -------------------------------------------------------------------------------------------------------


def test_without_mining_the_losses_of_regions_have_torchvision_s_mean() -> None:
    torch.manual_seed(0)
    logits, offsets = torch.randn(40, 5), torch.randn(40, 20)
    labels, wanted = torch.randint(0, 5, (40,)), torch.randn(40, 4)
    ours = [each.mean() for each in losses_of_regions(logits, offsets, labels, wanted)]
    torch.testing.assert_close(ours, list(fastrcnn_loss(logits, offsets, [labels], [wanted])))


def test_each_image_s_hardest_regions_are_kept() -> None:
    losses = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.8, 0.2])
    assert sorted(hardest(losses, [4, 2], 2).tolist()) == [1, 2, 4, 5]
    assert sorted(hardest(losses, [5, 1], 2).tolist()) == [1, 4, 5]


def test_mining_trains_on_the_regions_of_the_highest_loss(images: list[Tensor]) -> None:
    """All regions are computed, and the loss is higher than that of all of them, since easy ones are left out."""
    targets = [target([[4, 4, 30, 40]], [1]), target([[10, 20, 30, 50]], [2])]
    losses = []
    for kept in (8, 10_000):
        torch.manual_seed(0)
        net = small(training_regions=kept).train()
        assert isinstance(net.roi_heads, HardestRegions)
        losses.append(net(images, targets))
    for name in ("loss_objectness", "loss_rpn_box_reg"):
        assert torch.equal(losses[0][name], losses[1][name])
    hard, every = (each["loss_classifier"] + each["loss_box_reg"] for each in losses)
    assert hard > every * 1.01


def test_without_mining_the_region_head_is_torchvision_s() -> None:
    assert type(small(hard_mining=False).roi_heads) is RoIHeads


@pytest.mark.parametrize(
    "options", [{}, {"hard_mining": False, "head_layers": 2, "class_agnostic_boxes": False}], ids=["paper", "published"]
)
def test_training_returns_losses_whose_gradients_reach_every_parameter(
    images: list[Tensor], options: dict[str, object]
) -> None:
    torch.manual_seed(0)
    net = small(**options).train()
    losses = net(images, [target([[4, 4, 30, 40], [30, 30, 60, 62]], [1, 3]), target([[10, 20, 30, 50]], [2])])
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    sum(losses.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    silent = {name for name, p in net.named_parameters() if p.grad.abs().max() == 0}
    assert silent == set()


@pytest.mark.parametrize("empty", [(0,), (0, 1)])
def test_images_without_objects_give_finite_losses(images: list[Tensor], empty: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = small().train()
    losses = net(images, [target([], []) if n in empty else target([[4, 4, 30, 40]], [1]) for n in range(2)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_returns_boxes_inside_the_image_the_same_twice(images: list[Tensor]) -> None:
    torch.manual_seed(0)
    net = small().eval()
    net.roi_heads.score_thresh = 0.0  # an untrained net is not sure of anything
    with torch.no_grad():
        found, again = net(images), net(images)
        alone = net(images[:1])
    assert len(found) == 2
    assert len(alone) == 1
    for each, other in zip(found, again, strict=True):
        count = len(each["scores"])
        assert 0 < count <= 100
        assert each["boxes"].shape == (count, 4)
        assert each["boxes"].min() >= 0
        assert each["boxes"].max() <= SIZE
        assert set(each["labels"].tolist()) <= {1, 2, 3}
        assert all(torch.equal(each[name], other[name]) for name in each)


def test_a_stored_net_finds_the_same(images: list[Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = small().eval(), small().eval()
    save_file(nets[0].state_dict(), tmp_path / "net.safetensors")
    nets[1].load_state_dict(load_file(tmp_path / "net.safetensors"))
    for net in nets:
        net.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        for each, other in zip(*(net(images) for net in nets), strict=True):
            assert all(torch.equal(each[name], other[name]) for name in each)


def test_the_paper_s_anchors() -> None:
    generator = thundernet(backbone="snet49").rpn.anchor_generator
    (anchors,) = generator.cell_anchors
    sides = anchors[:, 2:] - anchors[:, :2]
    assert len(anchors) == 25
    expected = [
        (size / ratio**0.5, size * ratio**0.5)
        for ratio in (1 / 2, 3 / 4, 1, 4 / 3, 2)
        for size in (32, 64, 128, 256, 512)
    ]
    torch.testing.assert_close(sides, torch.tensor(expected), atol=1.0, rtol=0)  # torchvision rounds the corners


def test_images_are_padded_to_the_stride_of_c5() -> None:
    net = small(image_size=SIZE + 3).eval()
    net.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        (found,) = net([torch.rand(1, SIZE + 3, SIZE + 3)])
    assert len(found["boxes"]) > 0
    assert found["boxes"].max() <= SIZE + 3


@pytest.mark.parametrize(("options", "words"), [
    ({"backbone": "snet50"}, r"^model\.backbone=snet50 is not known; choose one of snet49, snet146, snet535\.$"),
    ({"backbone_options": {"stage_chanels": ()}}, r"^model\.backbone_options\.stage_chanels: .*stage_channels"),
    ({"head_layers": 0}, r"^model\.head_layers=0 must be at least 1"),
    ({"proposals": 0}, r"^model\.proposals=0 must be at least 1"),
    ({"num_classes": 1}, r"^model\.num_classes=1 must be at least 2"),
    ({"anchor_sizes": ()}, r"^model\.anchor_sizes=\[\] must be one number or more, each above 0"),
    ({"anchor_ratios": (1.0, 0.0)}, r"^model\.anchor_ratios=\[1\.0, 0\.0\] must be"),
])  # fmt: skip
def test_options_that_make_no_thundernet(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**options)


def test_a_backbone_s_own_errors_reach_the_caller() -> None:
    with pytest.raises(ValueError, match=r"^model\.stem_stride=3 must be 1, 2 or 4"):
        thundernet(backbone_options={"stem_stride": 3})
