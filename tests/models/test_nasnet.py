"""NASNet-A and PNASNet-5: the cells' wiring, how sizes are matched, drop path, the auxiliary head."""

import pytest
import torch
from timm.layers.pool2d_same import AvgPool2dSame
from timm.models.nasnet import NASNetALarge
from timm.models.pnasnet import PNASNet5Large
from torch import nn

from convatlas.models.classification.nasnet import (
    CELLS,
    Cell,
    NASNet,
    Pool,
    SeparableConv,
    Shape,
    StackedSeparableConv,
    Step,
)
from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.layers.cells import FactorizedReduction
from convatlas.models.layers.scheduled_drop_path import ScheduledDropPath

WIRINGS = {
    "nasnet_normal": CELLS["nasnet_a"].normal,
    "nasnet_reduction": CELLS["nasnet_a"].reduction,
    "pnasnet": CELLS["pnasnet_5"].normal,
}


def make_cell(wiring, stride):
    """Build a cell of 4 filters whose two inputs have that shape already."""
    torch.manual_seed(0)
    return Cell(Step(WIRINGS[wiring], 4, stride, 2), Shape(4, 0), Shape(4, 0), 0.0).eval()


# ---- wiring ---------------------------------------------------------------------------------------------------------


def nasnet_normal(a, b, s0, s1):
    b2 = a[0] * s0 + b[0] * s1
    b3 = a[1] * s1 + b[1] * s1
    b4 = a[2] * s0 + b[2] * s1
    b5 = a[3] * s1 + b[3] * s1
    b6 = a[4] * s0 + b[4] * s0
    return [s1, b2, b3, b4, b5, b6]


def nasnet_reduction(a, b, s0, s1):
    b2 = a[0] * s0 + b[0] * s1
    b3 = a[1] * s0 + b[1] * s1
    b4 = a[2] * s0 + b[2] * s1
    b5 = a[3] * b3 + b[3] * b2
    b6 = a[4] * b2 + b[4] * s0
    return [b3, b4, b5, b6]


def pnasnet(a, b, s0, s1):
    b2 = a[0] * s1 + b[0] * s1
    b3 = a[1] * s0 + b[1] * s0
    b4 = a[2] * s0 + b[2] * s0
    b5 = a[3] * b4 + b[3] * s0
    b6 = a[4] * s1 + b[4] * s0
    return [b2, b3, b4, b5, b6]


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@pytest.mark.parametrize("equations", [nasnet_normal, nasnet_reduction, pnasnet], ids=lambda f: f.__name__)
def test_states_flow_as_the_paper_s_figure_says(equations):
    """Every operation becomes a factor of its own, so that any other wiring gives other values."""
    cell = make_cell(equations.__name__, stride=1)
    left, right = [2.0, 3.0, 5.0, 7.0, 11.0], [13.0, 17.0, 19.0, 23.0, 29.0]
    cell.fit_current = cell.fit_previous = nn.Identity()
    for block, a, b in zip(cell.blocks, left, right, strict=True):
        block.left, block.right = Times(a), Times(b)
    s0, s1 = torch.randn(2, 4, 3, 3, dtype=torch.double), torch.randn(2, 4, 3, 3, dtype=torch.double)
    torch.testing.assert_close(cell(s0, s1), torch.cat(equations(left, right, s0, s1), 1))


def describe(operation):
    """Name an operation by what it is made of, and its stride."""
    parts = list(operation.modules())
    if any(isinstance(m, StackedSeparableConv) for m in parts):
        first, second = (m for m in parts if isinstance(m, SeparableConv))
        assert first.depthwise.kernel_size == second.depthwise.kernel_size
        assert second.depthwise.stride == (1, 1)
        return f"sep{first.depthwise.kernel_size[0]}", first.depthwise.stride[0]
    pools = [m for m in parts if isinstance(m, Pool)]
    if pools:
        return pools[0].kind, pools[0].stride
    convolutions = [m for m in parts if isinstance(m, nn.Conv2d)]
    return "id", convolutions[0].stride[0] if convolutions else 1


@pytest.mark.parametrize(
    ("wiring", "operations"),
    [
        ("nasnet_normal", ["sep5 sep3", "sep5 sep3", "average id", "average average", "sep3 id"]),
        ("nasnet_reduction", ["sep5 sep7", "max sep7", "average sep5", "id average", "sep3 max"]),
        ("pnasnet", ["sep5 max", "sep7 max", "sep5 sep3", "sep3 max", "sep3 id"]),
    ],
)
def test_blocks_have_the_paper_s_operations(wiring, operations):
    cell = make_cell(wiring, stride=1)
    assert [f"{describe(b.left)[0]} {describe(b.right)[0]}" for b in cell.blocks] == operations


@pytest.mark.parametrize("wiring", ["nasnet_reduction", "pnasnet"])
def test_only_operations_on_the_two_inputs_stride(wiring):
    cell = make_cell(wiring, stride=2)
    for block in cell.blocks:
        for operation, state in zip((block.left, block.right), block.states, strict=True):
            assert describe(operation)[1] == (2 if state < 2 else 1)
    out_channels = 4 * len(cell.concatenated)
    assert cell(torch.rand(1, 4, 7, 8), torch.rand(1, 4, 7, 8)).shape == (1, out_channels, 4, 4)


# ---- against another implementation ---------------------------------------------------------------------------------


def tensors(modules):
    return [t for module in modules for t in [*module.parameters(), *module.buffers()]]


def parts_of_ours(net):
    """List the modules with weights: for each cell the two fits, then the operations, block by block."""
    for cell in net.cells:
        yield from (cell.fit_previous, cell.fit_current, *(m for b in cell.blocks for m in (b.left, b.right)))


def parts_of_timms(net):
    """List the same modules of timm's net in the same order."""
    names = [name for name, _ in net.named_children() if "cell" in name]
    order = ["cell_stem_0", "cell_stem_1"]
    for i in range(100):
        # A reduction cell stands before the seventh and the thirteenth cell of NASNet-A large.
        order += [f"reduction_cell_{i // 6 - 1}"] if i in {6, 12} else []
        order.append(f"cell_{i}")
    for name in sorted(names, key=order.index):
        cell = dict(net.get_submodule(name).named_children())
        reduction = [cell[k] for k in ("path_1", "path_2", "final_path_bn") if k in cell]
        yield nn.ModuleList(reduction or [cell[k] for k in ("conv_prev_1x1",) if k in cell])
        yield cell["conv_1x1"]
        for i in range(5):
            for side in ("left", "right"):
                yield cell.get(f"comb_iter_{i}_{side}") or nn.Identity()


def assert_same_outputs(ours, timms, images):
    torch.manual_seed(0)
    for module in timms.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after a training, for every channel others
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    stem = next(m for name, m in timms.named_children() if name in {"conv0", "conv_0"})
    theirs = tensors([stem, *parts_of_timms(timms), timms.last_linear])
    own = tensors([ours.stem, *parts_of_ours(ours), ours.classifier])
    assert [t.shape for t in own] == [t.shape for t in theirs]
    with torch.no_grad():
        for mine, other in zip(own, theirs, strict=True):
            mine.copy_(other)
        ours, timms = ours.eval().double(), timms.eval().double()
        torch.testing.assert_close(ours(images), timms(images), rtol=1e-9, atol=0)


def test_nasnet_computes_what_timm_s_net_computes_from_the_same_weights():
    """18 cells, narrow; an odd image size, so that even and odd maps occur."""
    options = {"stem": "imagenet", "skip_reduction_input": True, "num_classes": 5}
    ours = NASNet(cells="nasnet_a", repeats=6, filters=8, stem_filters=6, **options)
    timms = NASNetALarge(num_classes=5, stem_size=6, num_features=8 * 24)
    for cell in timms.children():
        for name, module in cell.named_children():
            if isinstance(module, AvgPool2dSame):  # timm counts the zeros of the padding, TensorFlow does not
                setattr(cell, name, Pool("average", 2))
    assert_same_outputs(ours, timms, torch.randn(1, 3, 43, 43, dtype=torch.double))


@pytest.mark.slow
def test_pnasnet_computes_what_timm_s_net_computes_from_the_same_weights():
    ours = NASNet(cells="pnasnet_5", repeats=4, filters=216, stem="imagenet", stem_filters=96, num_classes=5)
    timms = PNASNet5Large(num_classes=5, pad_type="same")
    assert_same_outputs(ours, timms, torch.randn(1, 3, 35, 35, dtype=torch.double))


# ---- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "kernel_size"), [(8, 3), (9, 3), (8, 5), (9, 7), (1, 5), (2, 7)])
def test_separable_convolutions_are_padded_as_tensorflow_pads(size, kernel_size):
    """SAME: ceil(size / 2) positions; of the zeros that takes, the odd one stands behind."""
    layer = SeparableConv(1, 1, kernel_size, stride=2)
    nn.init.ones_(layer.depthwise.weight)
    nn.init.ones_(layer.pointwise.weight)
    x = torch.rand(1, 1, size, size)
    positions = -(-size // 2)
    before = max((positions - 1) * 2 + kernel_size - size, 0) // 2
    for row, out in enumerate(layer(x)[0, 0, :, 0]):
        start = row * 2 - before
        window = x[0, 0, max(start, 0) : start + kernel_size, : max(kernel_size - before, 0)]
        torch.testing.assert_close(out, window.sum())
    assert layer(x).shape == (1, 1, positions, positions)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_average_pooling_leaves_the_padding_out(size, stride):
    out = Pool("average", stride)(torch.ones(1, 1, size, size))
    assert torch.equal(out, torch.ones(1, 1, -(-size // stride), -(-size // stride)))


def test_maximum_pooling_of_an_even_map_starts_at_its_first_pixel():
    x = torch.arange(4.0).view(1, 1, 1, 4)
    assert Pool("max", 2)(x).flatten().tolist() == [2.0, 3.0]  # windows 0 1 2 and 2 3, not 0 1 and 1 2 3


@pytest.mark.parametrize("size", [7, 8])
def test_a_factorised_reduction_looks_at_both_diagonals(size):
    layer = FactorizedReduction(1, 2).eval()
    for convolution in (layer.even, layer.odd):
        nn.init.ones_(convolution.weight)
    layer.norm = nn.Identity()
    x = torch.rand(1, 1, size, size)
    half = -(-size // 2)
    odd = torch.zeros(half, half)
    odd[: size // 2, : size // 2] = x[0, 0, 1::2, 1::2]
    assert torch.equal(layer(x)[0], torch.stack([x[0, 0, ::2, ::2], odd]))


def test_the_first_cell_takes_its_raw_input_in_place_of_a_previous_output():
    net = NASNet(repeats=2, filters=4, stem_filters=12)
    first, second = net.cells[0], net.cells[1]
    assert isinstance(first.fit_previous, nn.Identity)
    assert first.fit_raw[0].in_channels == 12
    assert second.fit_previous[1].in_channels == 12
    assert isinstance(second.fit_raw, nn.Identity)


def test_the_cell_behind_a_reduction_takes_the_reduction_s_input_or_the_output_before_it():
    """With 2 cells a stage the outputs are: stem 0, cells 1 and 2, reduction 3, cell 4."""
    images = torch.zeros(2, 3, 16, 16, device="meta")
    for skip, source in ((False, 2), (True, 1)):
        net = on_meta_device(lambda skip=skip: NASNet(repeats=2, filters=4, skip_reduction_input=skip))
        taken = []
        net.cells[3].register_forward_hook(lambda _module, inputs, _output, taken=taken: taken.append(inputs))
        outputs = net._outputs(images)
        current, previous = taken[0]
        assert current is outputs[3]
        assert previous is outputs[source]


def test_pnasnet_strides_its_normal_cell_instead_of_inserting_another():
    inserting = on_meta_device(lambda: NASNet(cells="nasnet_a", repeats=2, filters=4))
    striding = on_meta_device(lambda: NASNet(cells="pnasnet_5", repeats=2, filters=4))
    assert (len(inserting.cells), len(striding.cells)) == (8, 6)
    assert striding.forward_features(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, 5 * 16, 8, 8)


@pytest.mark.parametrize(("stem", "side"), [("cifar", 8), ("small", 2), ("imagenet", 1)])
def test_stems_decide_the_size_of_the_last_map(stem, side):
    net = on_meta_device(lambda: NASNet(repeats=1, filters=4, stem=stem, stem_filters=8)).eval()
    assert net.forward_features(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, 6 * 16, side, side)


# ---- drop path, auxiliary head --------------------------------------------------------------------------------------


def test_drop_path_grows_with_depth_and_leaves_identities_alone():
    net = NASNet(repeats=1, filters=4, drop_path_rate=0.4)
    for position, cell in enumerate(net.cells, start=1):
        drops = [m for m in cell.modules() if isinstance(m, ScheduledDropPath)]
        identities = sum(name == "identity" for b in CELLS["nasnet_a"].normal.blocks for name in (b.left, b.right))
        reduction = position in {2, 4}
        assert len(drops) == 10 - (1 if reduction else identities)
        assert {drop.rate for drop in drops} == {0.4 * position / 5}


def test_the_net_hands_the_training_s_progress_to_its_drop_paths():
    net = NASNet(repeats=1, filters=4, drop_path_rate=0.4)
    net.begin_step(25, 100, seed=0)
    drops = [m for m in net.modules() if isinstance(m, ScheduledDropPath)]
    assert {drop.progress for drop in drops} == {0.25}
    assert net.step_figures() == {"drop_path_rate": pytest.approx(0.25 * sum(d.rate for d in drops) / len(drops))}
    assert NASNet(repeats=1, filters=4).step_figures() == {}


def test_the_auxiliary_head_answers_in_training_only():
    images = torch.zeros(2, 3, 32, 32, device="meta")
    net = on_meta_device(lambda: NASNet(repeats=1, filters=4, auxiliary=True, num_classes=7))
    output = net(images)
    assert output.logits.shape == (2, 7)
    assert [a.shape for a in output.auxiliary] == [(2, 7)]
    assert net.auxiliary_loss_weights == (0.4,)
    assert net.eval()(images).shape == (2, 7)
    assert NASNet(repeats=1, filters=4).auxiliary_loss_weights == ()


def test_the_auxiliary_head_sits_before_the_second_reduction_and_has_the_paper_s_layers():
    net = on_meta_device(lambda: NASNet(auxiliary=True))
    plain = on_meta_device(NASNet)
    # 5x5/3 pooling leaves 4x4 of 384 channels at 16x16: 1x1 to 128, 4x4 to 768, ten classes, two BNs
    head = 384 * 128 + 2 * 128 + 128 * 768 * 16 + 2 * 768 + 769 * 10
    assert count_parameters(net) - count_parameters(plain) == head


@pytest.mark.parametrize(("stem", "fits"), [("cifar", 27), ("small", 105), ("imagenet", 211)])
def test_images_too_small_for_the_auxiliary_head_are_refused(stem, fits):
    net = on_meta_device(lambda: NASNet(repeats=1, filters=4, stem=stem, auxiliary=True))
    assert net(torch.zeros(2, 3, fits, fits, device="meta")).auxiliary[0].shape == (2, 10)
    too_small = torch.zeros(2, 3, fits - 1, fits, device="meta")
    with pytest.raises(ValueError, match=rf"^data\.image_size: model\.auxiliary=true takes images from {fits}x{fits} "):
        net(too_small)
    assert net.eval()(too_small).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": "nasnet_b"}, r"^model\.cells=nasnet_b .*nasnet_a, pnasnet_5\.$"),
        ({"stem": "tiny"}, r"^model\.stem=tiny .*cifar, imagenet, small\.$"),
        ({"repeats": 0}, r"^model\.repeats=0 "),
        ({"filters": 2, "stem": "imagenet"}, r"^model\.filters=2 must be at least 4"),
        ({"drop_path_rate": 1.0}, r"^model\.drop_path_rate=1\.0 "),
        ({"cells": "pnasnet_5", "skip_reduction_input": True}, r"^model\.skip_reduction_input=true "),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NASNet(**options)


def test_images_that_the_imagenet_stem_cannot_take_are_refused():
    with pytest.raises(ValueError, match=r"^data\.image_size: this net takes images from 3x3 pixels"):
        NASNet(repeats=1, filters=4, stem="imagenet")(torch.rand(1, 3, 2, 2))
