"""SpineNet: published sizes, the extra edge, resampling, endpoints, permutations as data."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from timm.layers.pool2d_same import max_pool2d_same
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

from convatlas.models.classification import spinenet
from convatlas.models.classification.spinenet import (
    ALLOCATIONS,
    PERMUTATIONS,
    SPINENET_49,
    BlockSpec,
    Permutation,
    Resample,
    ResidualBlock,
    SpineNet,
    SpineNetBackbone,
    extra_edges,
)
from convatlas.models.costs import count_parameters, on_meta_device

WIDTH = 0.0625


def thin_backbone(**options) -> SpineNetBackbone:
    torch.manual_seed(0)
    return SpineNetBackbone(**({"width": WIDTH, "in_channels": 1} | options)).eval()


def sides(maps: dict[str, Tensor]) -> list[int]:
    return [each.shape[-1] for each in maps.values()]


# ---- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "endpoint_width", "parameters"),
    [
        ("49S", 128, 9_089_215),  # the authors' code
        ("49S", None, 9_472_959),
        ("49", None, 21_831_488),
        ("96", None, 36_262_976),
        ("143", None, 60_247_616),
        ("190", None, 126_587_664),
    ],
)
def test_parameters_of_the_backbone(variant, endpoint_width, parameters):
    net = on_meta_device(lambda: SpineNetBackbone(variant, endpoint_width=endpoint_width))
    assert count_parameters(net) == parameters


@pytest.mark.parametrize(
    ("variant", "parameters", "macs"), [("49", 22_088_488, 3_477_940_224), ("143", 60_504_616, 9_086_871_552)]
)
def test_what_the_classifiers_cost(variant, parameters, macs):
    """22.1M parameters and 3.5 billion FLOPs are quoted for 49, 60.5M and 9.1 billion for 143."""
    net = on_meta_device(lambda: SpineNet(variant)).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 224, 224, device="meta"))
    assert (count_parameters(net), counter.get_total_flops()) == (parameters, 2 * macs)


@pytest.mark.parametrize(
    ("pixels", "expected"), [(640, [80, 40, 20, 10, 5]), (1280, [160, 80, 40, 20, 10]), (224, [28, 14, 7, 4, 2])]
)
def test_endpoints_have_the_levels_resolutions(pixels, expected):
    net = on_meta_device(SpineNetBackbone).eval()
    maps = net(torch.zeros(1, 3, pixels, pixels, device="meta"))
    assert list(maps) == ["P3", "P4", "P5", "P6", "P7"]
    assert sides(maps) == expected
    assert {each.shape[1] for each in maps.values()} == {256}


@pytest.mark.parametrize(
    ("stem", "pixels", "strides"),
    [("imagenet", 128, (8, 16, 32, 64, 128)), ("half", 64, (4, 8, 16, 32, 64)), ("full", 32, (2, 4, 8, 16, 32))],
)
def test_stems_for_small_images_give_them_the_maps_of_large_ones(stem, pixels, strides):
    net = thin_backbone(stem=stem)
    assert net.strides == strides
    assert sides(net(torch.rand(1, 1, pixels, pixels))) == [16, 8, 4, 2, 1]


@pytest.mark.parametrize(("variant", "blocks"), [("49", 17), ("96", 34), ("143", 51)])
def test_larger_nets_repeat_every_block(variant, blocks):
    net = on_meta_device(lambda: SpineNetBackbone(variant))
    assert sum(isinstance(module, ResidualBlock) for module in net.modules()) == blocks


# ---- wiring ---------------------------------------------------------------------------------------------------------


def test_by_the_rule_the_one_extra_edge_is_11_to_14():
    assert extra_edges(SPINENET_49) == {14: (11,)}


def with_block(number: int, block: BlockSpec) -> Permutation:
    blocks = list(SPINENET_49.blocks)
    blocks[number - 2] = block
    return SPINENET_49._replace(blocks=tuple(blocks))


def test_a_block_that_is_taken_needs_no_extra_edge():
    assert extra_edges(with_block(13, BlockSpec(3, "bottleneck", (4, 11), output=True))) == {}


def test_a_block_of_other_channels_gets_no_extra_edge():
    assert extra_edges(with_block(11, BlockSpec(5, "residual", (8, 10)))) == {}


def test_without_block_11_levels_5_to_7_change_and_3_and_4_do_not():
    net = thin_backbone()
    image = torch.rand(1, 1, 128, 128)
    before = net(image)
    net.blocks[11 - 2].register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    after = net(image)
    changed = {level: not torch.equal(before[level], after[level]) for level in before}
    assert changed == {"P3": False, "P4": False, "P5": True, "P6": True, "P7": True}


def test_a_block_adds_its_resampled_parents_and_the_extra_edge_before_the_activation():
    net = thin_backbone()
    features = net.compute_blocks(torch.rand(1, 1, 128, 128))
    block = net.blocks[14 - 2]
    from_7, from_12 = block.resamplings
    total = from_7(features[7], (4, 4)) + from_12(features[12], (4, 4)) + features[11]
    assert (total < 0).any()
    torch.testing.assert_close(features[14], block.body(F.relu(total)))


def test_endpoints_are_normalised_and_activated():
    net = thin_backbone()
    image = torch.rand(1, 1, 128, 128)
    convolution, norm, _ = net.endpoints["P6"]
    expected = norm(convolution(net.compute_blocks(image)[16]))
    assert (expected < 0).any()
    torch.testing.assert_close(net(image)["P6"], F.relu(expected))


def test_the_table_of_spinenet_49_has_the_published_allocation():
    counts = Counter(block.level for block in SPINENET_49.blocks)
    allocation = ALLOCATIONS["spinenet_49"]
    assert allocation.stem == SPINENET_49.stem
    assert allocation.permuted == tuple(counts[level] for level in range(2, 8))


@pytest.mark.parametrize("name", list(PERMUTATIONS))
def test_in_every_permutation_each_block_reaches_an_output_and_each_level_has_one(name):
    permutation = PERMUTATIONS[name]
    first, edges = sum(permutation.stem), extra_edges(permutation)
    reached = set()
    for number in range(first + len(permutation.blocks) - 1, first - 1, -1):
        block = permutation.blocks[number - first]
        assert max(block.parents) < number
        if block.output or number in reached:
            reached |= {number, *block.parents, *edges.get(number, ())}
    assert reached | set(range(first)) == set(range(first + len(permutation.blocks)))
    assert sorted(block.level for block in permutation.blocks if block.output) == [3, 4, 5, 6, 7]


def test_a_permutation_with_a_resnet_before_it_is_built_from_its_table(monkeypatch):
    outputs = tuple(BlockSpec(level, "bottleneck", (3, 4), output=True) for level in (3, 4, 5, 6, 7))
    own = Permutation(stem=(1, 1, 2, 1), blocks=outputs)
    monkeypatch.setitem(spinenet.PERMUTATIONS, "own", own)
    net = thin_backbone(permutation="own")
    features = net.compute_blocks(torch.rand(1, 1, 128, 128))
    assert [each.shape[-1] for each in features] == [32, 16, 8, 8, 4, 16, 8, 4, 2, 1]
    assert [each.shape[1] for each in features[:5]] == [16, 32, 64, 64, 64]
    assert extra_edges(own) == {}  # blocks 1 and 2, of levels 3 and 4, are taken by the next blocks of the stem


# ---- layers ---------------------------------------------------------------------------------------------------------


def same_pool(line: Tensor, kernel: int, stride: int) -> Tensor:
    """Pool one line as TensorFlow's SAME is defined: windows that may stick out, a little more behind than before."""
    count = math.ceil(len(line) / stride)
    before = max((count - 1) * stride + kernel - len(line), 0) // 2
    starts = [step * stride - before for step in range(count)]
    return torch.stack([line[max(start, 0) : start + kernel].max() for start in starts])


@pytest.mark.parametrize("size", [7, 8, 16, 28])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 3), (5, 4), (5, 8)])
def test_pooling_is_padded_as_in_tensorflow(size, kernel, stride):
    line = torch.randn(size)
    expected = same_pool(line, kernel, stride)
    assert torch.equal(max_pool2d_same(line[None, None, None], (1, kernel), (1, stride))[0, 0, 0], expected)
    assert torch.equal(max_pool2d_same(line[None, None, :, None], (kernel, 1), (stride, 1))[0, 0, :, 0], expected)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(16, 0, 0), (8, 3, 2), (4, 5, 4), (2, 5, 8)]
)  # from 32: halved by the convolution alone, or pooled further
def test_going_down_is_a_strided_convolution_and_one_pooling(size, kernel, stride):
    torch.manual_seed(0)
    layer = Resample(6, 4, 8, down=True, activation="relu").eval()
    x = torch.randn(2, 6, 32, 32)
    assert layer.halve is not None
    expected = layer.halve(F.relu(layer.reduce[1](F.conv2d(x, layer.reduce[0].weight))))
    if kernel:
        behind = max(kernel - stride, 0)  # SAME on even sizes
        expected = F.max_pool2d(F.pad(expected, (0, behind, 0, behind), value=-math.inf), kernel, stride)
    expected = layer.expand[1](F.conv2d(expected, layer.expand[0].weight))
    torch.testing.assert_close(layer(x, (size, size)), expected)
    assert (expected < 0).any()  # no activation at the end


def test_going_up_repeats_pixels():
    torch.manual_seed(0)
    layer = Resample(6, 4, 8, down=False, activation="relu").eval()
    x = torch.randn(2, 6, 3, 3)
    expected = layer.expand(layer.reduce(x).repeat_interleave(4, 2).repeat_interleave(4, 3))
    torch.testing.assert_close(layer(x, (12, 12)), expected)


def test_a_parent_is_resampled_at_alpha_times_its_3x3_width():
    net = on_meta_device(lambda: SpineNetBackbone("49"))
    widths = [layer.reduce[0].out_channels for layer in net.blocks[14 - 2].resamplings]
    assert widths == [128, 128]  # 7 and 12, of level 4: half of 256
    assert [layer.reduce[0].out_channels for layer in net.blocks[4 - 2].resamplings] == [32, 128]  # 2 and 3


def test_channels_are_rounded_down():
    net = on_meta_device(lambda: SpineNetBackbone("49S"))
    assert net.blocks[0].body[0].branch[1][0].weight.shape == (41, 41, 3, 3)  # 0.65 * 64 = 41.6


def test_blocks_are_dropped_more_often_towards_the_end():
    net = SpineNetBackbone("96", width=WIDTH, drop_connect_rate=0.3)
    rates = [[m.p for m in block.modules() if isinstance(m, StochasticDepth)] for block in net.blocks]
    expected = [[0.3 * number / 15] * 2 for number in range(1, 16)]
    assert rates == expected
    assert {m.p for m in net.stem_blocks.modules() if isinstance(m, StochasticDepth)} == {0.0}


def test_convolutions_start_with_a_variance_of_one_over_the_fan_in():
    torch.manual_seed(0)
    weight = SpineNetBackbone("49", width=0.5).blocks[-1].body[0].branch[1][0].weight
    fan_in = weight[0].numel()
    assert weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.01)
    assert weight.abs().max().item() <= 2.274 * fan_in**-0.5


def test_blocks_may_begin_as_their_shortcuts():
    net = thin_backbone(variant="96", zero_init_last=True)
    x = torch.rand(1, 256 // 16 * 4, 4, 4)  # what a block takes is behind an activation
    assert torch.equal(net.blocks[-1].body(x), x)
    assert not torch.equal(thin_backbone(variant="96").blocks[-1].body(x), x)
    first = net.stem_blocks[0][0]  # of other channels than the stem: the shortcut is a projection
    x = torch.rand(1, 4, 8, 8)
    assert torch.equal(first(x), F.relu(first.shortcut(x)))


def gradient_at_the_stem(variant: str, *, zero_init_last: bool) -> float:
    net = thin_backbone(variant=variant, zero_init_last=zero_init_last).train()
    images = torch.rand(4, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    sum(each.square().mean() for each in net(images).values()).backward()
    return net.stem[0][0].weight.grad.norm().item()


def test_gradients_grow_with_the_repetitions_unless_blocks_begin_as_their_shortcuts():
    """With normalised branches of unit scale every repetition adds to the gradient's variance on its way back."""
    growth = {
        zero: gradient_at_the_stem("143", zero_init_last=zero) / gradient_at_the_stem("49", zero_init_last=zero)
        for zero in (False, True)
    }
    assert growth[False] > 10
    assert 0.5 < growth[True] < 2


# ---- classification -------------------------------------------------------------------------------------------------


def test_the_classifier_sees_the_mean_over_the_levels():
    torch.manual_seed(0)
    net = SpineNet(width=WIDTH, num_classes=5, in_channels=1).eval()
    image = torch.rand(2, 1, 128, 128)
    pooled = torch.stack([each.mean((2, 3)) for each in net.backbone(image).values()]).mean(0)
    assert net.forward_features(image).shape == (2, 16, 16, 16)
    torch.testing.assert_close(net(image), net.classifier(pooled))


def test_swish_takes_the_place_of_every_relu():
    kinds = {type(m) for m in on_meta_device(lambda: SpineNetBackbone(activation="swish")).modules()}
    assert nn.SiLU in kinds
    assert nn.ReLU not in kinds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "50"}, r"^model\.variant=50 .*49S, 49, 96, 143, 190\.$"),
        ({"permutation": "r35_sp18"}, r"^model\.permutation=r35_sp18 .*spinenet_49\.$"),
        ({"stem": "none"}, r"^model\.stem=none .*imagenet, half, full\.$"),
        ({"activation": "gelu"}, r"^model\.activation=gelu .*relu, swish\.$"),
        ({"drop_connect_rate": 1.0}, r"^model\.drop_connect_rate=1\.0 "),
        ({"width": 0.0}, r"^model\.width=0\.0 "),
        ({"width": 0.02}, r"^model\.width=0\.02 leaves a layer without channels; use 0\.0312 or more\.$"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpineNet(**options)


def test_an_endpoint_without_channels_is_refused():
    with pytest.raises(ValueError, match=r"^model\.endpoint_width=0 "):
        SpineNetBackbone(endpoint_width=0)
