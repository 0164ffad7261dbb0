"""SqueezeNext: the order of a block's convolutions, its shortcut, and what sets the versions apart."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.squeezenext import SqueezeNext, SqueezeNextBlock
from convatlas.models.costs import on_meta_device


def blocks(net):
    return [list(stage) for stage in net.stages]


def convolutions(block):
    return [layer[0] for layer in block.branch]


def test_a_block_squeezes_twice_and_takes_the_3x3_apart():
    branch = convolutions(SqueezeNextBlock(48, 48))
    assert [(c.in_channels, c.out_channels) for c in branch] == [(48, 24), (24, 12), (12, 24), (24, 24), (24, 48)]
    assert [c.kernel_size for c in branch] == [(1, 1), (1, 1), (3, 1), (1, 3), (1, 1)]


def test_the_two_thin_convolutions_see_3x3_pixels():
    torch.manual_seed(0)
    block = SqueezeNextBlock(64, 64).eval()
    x = torch.randn(4, 64, 7, 7, requires_grad=True)
    (block.branch(x)[:, :, 3, 3].sum()).backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[2:5, 2:5] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("version", ["v1", "v5"])
def test_the_thin_convolutions_change_places_from_block_to_block(version):
    for stage in blocks(on_meta_device(lambda: SqueezeNext(version=version))):
        first = [convolutions(block)[2].kernel_size for block in stage]
        second = [convolutions(block)[3].kernel_size for block in stage]
        assert first == [((3, 1), (1, 3))[index % 2] for index in range(len(stage))]
        assert second == [((1, 3), (3, 1))[index % 2] for index in range(len(stage))]


@pytest.mark.parametrize(("version", "stem", "numbers"), [("v1", (7, 7), [6, 6, 8, 1]), ("v5", (5, 5), [2, 4, 14, 1])])
def test_both_versions_have_21_blocks(version, stem, numbers):
    net = on_meta_device(lambda: SqueezeNext(version=version))
    assert [len(stage) for stage in net.stages] == numbers
    assert net.stem[0].kernel_size == stem
    assert sum(numbers) == 21


@pytest.mark.parametrize(("behind", "source"), [(False, "input"), (True, "shortcut")])
def test_the_branch_starts_at_the_input_or_behind_the_shortcut(behind, source):
    torch.manual_seed(0)
    block = SqueezeNextBlock(6, 8, stride=2, first_in_stage=True, branch_behind_shortcut=behind).eval()
    x = torch.randn(2, 6, 8, 8)
    shortcut = block.shortcut(x)
    start = {"input": x, "shortcut": shortcut}[source]
    assert shortcut.shape == (2, 8, 4, 4)
    assert torch.equal(block(x), F.relu(shortcut + block.branch(start)))


def test_version_5_alone_starts_the_branch_behind_the_shortcut():
    behind = {
        version: {block.branch_behind_shortcut for stage in blocks(SqueezeNext(version=version)) for block in stage}
        for version in ("v1", "v5")
    }
    assert behind == {"v1": {False}, "v5": {True}}


@pytest.mark.parametrize("width", [1.0, 2.0])
def test_only_the_first_block_of_a_stage_has_a_convolution_as_shortcut(width):
    # At width 2 the first stage's 64 channels are the stem's, and the released net convolves none the less.
    for stage in blocks(on_meta_device(lambda: SqueezeNext(width=width))):
        identities = [isinstance(block.shortcut, nn.Identity) for block in stage]
        assert identities == [False] + [True] * (len(stage) - 1)


def test_groups_divide_the_first_and_the_two_thin_convolutions():
    net = on_meta_device(lambda: SqueezeNext(groups=2))
    for stage in blocks(net):
        for block in stage:
            assert [c.groups for c in convolutions(block)] == [2, 1, 2, 2, 1]
    assert net.head[0].groups == 1


def test_nothing_but_the_norms_has_a_bias():
    net = on_meta_device(SqueezeNext)
    assert all(m.bias is None for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))


@pytest.mark.parametrize("version", ["v1", "v5"])
def test_the_smallest_image_is_the_one_that_the_message_names(version):
    net = SqueezeNext(version=version, num_classes=7).eval()
    side = net.smallest_image
    assert net(torch.zeros(1, 3, side, side)).shape == (1, 7)
    with pytest.raises(ValueError, match=rf"^data\.image_size: .* takes images from {side}x{side} pixels"):
        net(torch.zeros(1, 3, side - 1, side))
    net.smallest_image = 0
    with pytest.raises(RuntimeError, match="too small"):
        net(torch.zeros(1, 3, side - 1, side - 1))


def test_the_small_stem_takes_a_single_pixel():
    assert SqueezeNext(stem="small", num_classes=7).eval()(torch.zeros(1, 3, 1, 1)).shape == (1, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "v9"}, r"^model\.version=v9 is not known; choose one of v1, v5\.$"),
        ({"stem": "large"}, r"^model\.stem=large is not known; choose one of imagenet, small\.$"),
        ({"blocks": (1, 2)}, r"^model\.blocks=\[1, 2\] must be 4 numbers, each at least 1\.$"),
        ({"width": 0.3}, r"^model\.width=0\.3 .* model\.width must be a multiple of 0\.125\.$"),
        ({"width": 0.125, "groups": 2}, r"^model\.width=0\.125 .* model\.width must be a multiple of 0\.25\.$"),
        ({"groups": 3}, r"^model\.groups=3 does not divide the stem's 64 channels"),
    ],
)
def test_squeezenext_says_which_options_fit(options, message):
    with pytest.raises(ValueError, match=message):
        SqueezeNext(**options)
