"""DARTS: the cells' wiring, genotypes as data, operations, the auxiliary head."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.darts import (
    GENOTYPES,
    OPERATIONS,
    Cell,
    DartsNet,
    make_operation,
    read_genotype,
)
from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.layers.cells import FactorizedReduction
from convatlas.models.layers.scheduled_drop_path import ScheduledDropPath


def small_net(**options):
    torch.manual_seed(0)
    return DartsNet(**{"channels": 4, "layers": 3} | options)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def normal_v2(a, b, s0, s1):
    n0 = a[0] * s0 + b[0] * s1
    n1 = a[1] * s0 + b[1] * s1
    n2 = a[2] * s1 + b[2] * s0
    n3 = a[3] * s0 + b[3] * n0
    return [n0, n1, n2, n3]


def reduction_v2(a, b, s0, s1):
    n0 = a[0] * s0 + b[0] * s1
    n1 = a[1] * n0 + b[1] * s1
    n2 = a[2] * s0 + b[2] * n0
    n3 = a[3] * n0 + b[3] * s1
    return [n0, n1, n2, n3]


@pytest.mark.parametrize("equations", [normal_v2, reduction_v2], ids=lambda f: f.__name__)
def test_nodes_take_the_states_of_the_published_cell(equations):
    """Every edge becomes a factor of its own, so that any other wiring gives other values."""
    genotype = GENOTYPES["darts_v2"]
    nodes = genotype.normal if equations is normal_v2 else genotype.reduction
    cell = Cell(nodes, 4, 4, 4, reduction=False, after_reduction=False, drop_path_rate=0.0)
    cell.fit_before = cell.fit_last = nn.Identity()
    left, right = [2.0, 3.0, 5.0, 7.0], [11.0, 13.0, 17.0, 19.0]
    for node, a, b in zip(cell.nodes, left, right, strict=True):
        node[0], node[1] = Times(a), Times(b)
    s0, s1 = torch.randn(2, 4, 3, 3, dtype=torch.double), torch.randn(2, 4, 3, 3, dtype=torch.double)
    torch.testing.assert_close(cell(s0, s1), torch.cat(equations(left, right, s0, s1), 1))


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("darts_v1", {"sep_conv_3x3": 5, "skip_connect": 3}),
        ("darts_v2", {"sep_conv_3x3": 5, "skip_connect": 2, "dil_conv_3x3": 1}),
    ],
)
def test_published_normal_cells_have_their_operations(name, operations):
    edges = [edge.operation for node in GENOTYPES[name].normal for edge in node]
    assert {operation: edges.count(operation) for operation in set(edges)} == operations


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [7, 8])
def test_operations_agree_on_their_output_size(name, stride, size):
    out = make_operation(name, 4, stride)(torch.rand(2, 4, size, size))
    assert out.shape == (2, 4, -(-size // stride), -(-size // stride))


def test_a_dilated_convolution_reaches_as_far_as_a_kernel_of_twice_the_size():
    operation = make_operation("dil_conv_3x3", 1, 1).eval()
    nn.init.ones_(operation[1].weight)
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1
    assert operation[1](point).nonzero()[:, 2].unique().tolist() == [2, 4, 6]


def test_a_factorised_reduction_drops_no_diagonal_of_an_even_map():
    layer = FactorizedReduction(3, 4).eval()
    x = torch.rand(2, 3, 6, 6)
    even = F.conv2d(x, layer.even.weight, stride=2)
    odd = F.conv2d(x[:, :, 1:, 1:], layer.odd.weight, stride=2)
    torch.testing.assert_close(layer(x), layer.norm(torch.cat([even, odd], 1)))


def test_reductions_stand_at_one_and_two_thirds_of_the_depth():
    net = on_meta_device(DartsNet)
    halving = [
        i
        for i, cell in enumerate(net.cells)
        if any(getattr(m, "stride", 1) in (2, (2, 2)) for node in cell.nodes for m in node.modules())
    ]
    assert halving == [6, 13]
    behind = [i for i, cell in enumerate(net.cells) if isinstance(cell.fit_before, FactorizedReduction)]
    assert behind == [7, 14]


@pytest.mark.parametrize(("stem", "side"), [("cifar", 16), ("small", 4), ("imagenet", 2)])
def test_stems_decide_the_size_of_the_last_map(stem, side):
    assert small_net(stem=stem).eval().forward_features(torch.rand(1, 3, 64, 64)).shape == (1, 64, side, side)


def test_a_genotype_is_data():
    """The published cell, written down by a user, builds the same net as its name."""
    written = {
        key: [[list(edge) for edge in node] for node in nodes] for key, nodes in GENOTYPES["darts_v1"]._asdict().items()
    }
    assert read_genotype(written) == GENOTYPES["darts_v1"]
    by_name, by_hand = small_net(genotype="darts_v1"), small_net(genotype=written)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(by_name(images), by_hand(images))


def test_a_node_may_have_any_number_of_edges():
    node = [["skip_connect", 0], ["skip_connect", 1], ["max_pool_3x3", 1]]
    net = small_net(genotype={"normal": [node], "reduction": [node[:1], node[1:]]})
    assert net(torch.rand(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        ("darts_v3", r"^model\.genotype=darts_v3 is not known\. Did you mean darts_v"),
        ({"normal": []}, r"^model\.genotype must have the keys normal and reduction, not normal\.$"),
        (
            {"normal": [[["sep_conv_4x4", 0]]], "reduction": []},
            r"^model\.genotype\.normal: node 0 has the unknown operation sep_conv_4x4\. Did you mean .*sep_conv_3x3",
        ),
        ({"normal": [[]], "reduction": []}, r"^model\.genotype\.normal must have at least one node"),
        (
            {"normal": [["skip_connect", 1]], "reduction": []},
            r"^model\.genotype\.normal: node 0 has the edge skip_connect; write \[operation, state\]\.$",
        ),
        (
            {"normal": [[["skip_connect", 1]]], "reduction": [[["skip_connect", 2]]]},
            r"^model\.genotype\.reduction: node 0 takes state 2; choose one from 0 to 1\.$",
        ),
    ],
)
def test_ill_formed_genotypes_are_refused(genotype, message):
    with pytest.raises(ValueError, match=message):
        DartsNet(genotype=genotype)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"^model\.layers=2 must be at least 3"):
        small_net(layers=2)
    with pytest.raises(ValueError, match=r"^model\.stem=tiny .*cifar, imagenet, small\.$"):
        small_net(stem="tiny")
    with pytest.raises(ValueError, match=r"^model\.channels=5 must be even .* for example 6\.$"):
        small_net(channels=5, stem="imagenet")
    with pytest.raises(ValueError, match=r"^model\.drop_path_rate=-1 "):
        small_net(drop_path_rate=-1)


def test_drop_path_leaves_plain_skips_alone():
    net = small_net(drop_path_rate=0.2)
    normal, reduction = net.cells[0], net.cells[1]
    assert [[isinstance(edge, nn.Identity) for edge in node] for node in normal.nodes] == [
        [False, False],
        [False, False],
        [False, True],
        [True, False],
    ]
    drops = [m for m in reduction.modules() if isinstance(m, ScheduledDropPath)]
    assert [drop.rate for drop in drops] == [0.2] * 5  # eight edges, three of them skips from a node


def test_drop_path_grows_with_the_training():
    net = small_net(drop_path_rate=0.2)
    net.begin_step(50, 100, seed=0)
    assert {m.progress for m in net.modules() if isinstance(m, ScheduledDropPath)} == {0.5}
    assert net.step_figures() == {"drop_path_rate": pytest.approx(0.1)}
    assert small_net().step_figures() == {}


def test_the_auxiliary_head_answers_in_training_only():
    images = torch.rand(2, 3, 32, 32)
    net = small_net(auxiliary=True, num_classes=7)
    output = net(images)
    assert output.logits.shape == (2, 7)
    assert [a.shape for a in output.auxiliary] == [(2, 7)]
    assert net.auxiliary_loss_weights == (0.4,)
    assert net.eval()(images).shape == (2, 7)
    assert small_net().auxiliary_loss_weights == ()


def test_the_auxiliary_head_has_the_paper_s_layers():
    with_head = on_meta_device(lambda: small_net(auxiliary=True))
    # 64 channels behind the second reduction: 1x1 to 128, 2x2 to 768, ten classes, two BNs
    head = 64 * 128 + 2 * 128 + 128 * 768 * 4 + 2 * 768 + 769 * 10
    assert count_parameters(with_head) - count_parameters(small_net()) == head


@pytest.mark.parametrize(("stem", "fits"), [("cifar", 29), ("small", 113), ("imagenet", 193)])
def test_images_too_small_for_the_auxiliary_head_are_refused(stem, fits):
    net = on_meta_device(lambda: small_net(stem=stem, auxiliary=True))
    assert net(torch.zeros(2, 3, fits, fits, device="meta")).auxiliary[0].shape == (2, 10)
    too_small = torch.zeros(2, 3, fits - 1, fits, device="meta")
    with pytest.raises(ValueError, match=rf"^data\.image_size: model\.auxiliary=true takes images from {fits}x{fits} "):
        net(too_small)
    assert net.eval()(too_small).shape == (2, 10)
