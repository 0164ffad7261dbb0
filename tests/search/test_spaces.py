"""NASNet's and DARTS's spaces: every operation and wiring makes a net, alone and with shared weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convatlas.models.classification.nasnet import OPERATIONS, Block, Cell, Shape, Step, Wiring, make_operation
from convatlas.search.budget import MacsCounter, macs_of
from convatlas.search.config import DartsSpaceConfig, NasnetSpaceConfig
from convatlas.search.darts import MixedNet, strongest
from convatlas.search.shared_weights import SharedCell, SharedNet
from convatlas.search.spaces import DartsSpace, NasnetSpace, state_pairs


def nasnet_config(**more):
    plain = {"blocks": 2, "operations": OPERATIONS, "combinations": ["add", "concat"], "repeats": 1, "filters": 4}
    return NasnetSpaceConfig(kind="nasnet", stem="small", stem_filters=4, **{**plain, **more})


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_rounds_sizes_up(name, stride):
    for channels, side in ((6, 7), (4, 8), (4, 1), (4, 2)):
        operation = make_operation(name, channels, 4, stride).eval()
        assert operation(torch.rand(1, channels, side, side)).shape == (1, 4, -(-side // stride), -(-side // stride))


@pytest.mark.parametrize("name", ["max_5x5", "max_7x7"])
def test_large_pools_look_as_far_as_their_name_says(name):
    reach = int(name[-1]) // 2
    spot = torch.zeros(1, 1, 15, 15)
    spot[0, 0, 7, 7] = 1
    seen = make_operation(name, 1, 1, 1)(spot)[0, 0].nonzero()
    assert seen.min(0).values.tolist() == [7 - reach] * 2
    assert seen.max(0).values.tolist() == [7 + reach] * 2


@pytest.mark.parametrize("stride", [1, 2])
def test_an_input_that_no_block_uses_goes_to_the_output_in_its_size(stride):
    wiring = Wiring((Block("identity", 1, "identity", 1),), (0, 2))
    cell = Cell(Step(wiring, 4, stride, 2), Shape(6, 0), Shape(4, 0), 0.0)
    side = 8 // stride
    assert cell(torch.rand(2, 6, 8, 8), torch.rand(2, 4, 8, 8)).shape == (2, 8, side, side)


def test_concatenation_keeps_all_of_both_sides():
    torch.manual_seed(0)
    wiring = Wiring((Block("identity", 0, "identity", 1, "concat"),), (2,))
    cell = Cell(Step(wiring, 4, 1, 2), Shape(4, 0), Shape(4, 0), 0.0).eval()
    current, before = (torch.rand(1, 4, 3, 3) for _ in range(2))
    expected = cell.blocks[0].fit_both(torch.cat([cell.fit_current(current), before], 1))
    torch.testing.assert_close(cell(current, before), expected)


def test_every_drawn_net_can_be_built_and_runs_with_shared_weights_too():
    torch.manual_seed(0)
    space = NasnetSpace(nasnet_config())
    shared = SharedNet(space.config, 10, 1)
    images = torch.rand(2, 1, 32, 32)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        decisions = space.sample(generator)
        assert space.build(decisions, 10, 1)(images).shape == (2, 10)
        assert shared(images, space.blocks(decisions)).shape == (2, 10)


def test_what_works_is_counted_as_a_net_of_its_own_would_be():
    space = NasnetSpace(nasnet_config())
    shared = SharedNet(space.config, 10, 1)
    counter = MacsCounter(shared)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        cells = space.blocks(space.sample(generator))
        once = macs_of(shared, torch.zeros(1, 1, 32, 32), cells)
        assert counter.take() == 2 * once  # it counted with two images
        shared(torch.zeros(3, 1, 32, 32), cells)
        assert counter.take() == 3 * once


def test_only_the_drawn_part_of_shared_weights_gets_a_gradient():
    torch.manual_seed(0)
    cell = SharedCell(nasnet_config(operations=["conv_1x1", "conv_3x3"]), 4, 4, 4, stride=1, halve_before=False)
    blocks = [Block("conv_3x3", 0, "conv_1x1", 1), Block("conv_1x1", 2, "conv_1x1", 0)]
    cell(torch.rand(2, 4, 4, 4), torch.rand(2, 4, 4, 4), blocks).square().sum().backward()
    used = {name for name, module in cell.operations.items() if next(module.parameters()).grad is not None}
    assert used == {"0_left_0_conv_3x3", "0_right_1_conv_1x1", "1_left_2_conv_1x1", "1_right_0_conv_1x1"}
    assert [output.weight.grad is not None for output in cell.outputs] == [False, False, False, True]


# ---- DARTS ----------------------------------------------------------------------------------------------------------

DARTS = DartsSpaceConfig(
    kind="darts", nodes=2, operations=["skip_connect", "sep_conv_3x3"], layers=3, channels=4, stem="small"
)


def test_the_strongest_edges_remain_and_none_is_left_out():
    # Node 0 has edges 0 and 1; node 1 has edges 2, 3 and 4. Columns: none, skip_connect, sep_conv_3x3.
    alpha = torch.tensor([[9.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.1], [0.0, 0.0, 2.0]])
    found = DartsSpace(DARTS).genotype(strongest([alpha, alpha], nodes=2))
    cell = [
        [["skip_connect", 0], ["sep_conv_3x3", 1]],
        [["skip_connect", 0], ["sep_conv_3x3", 2]],
    ]
    assert found == {"normal": cell, "reduction": cell}


def test_pairs_of_states_are_all_pairs_of_different_ones():
    assert state_pairs(0) == [(0, 1)]
    assert state_pairs(1) == [(0, 1), (0, 2), (1, 2)]


def test_the_search_net_has_no_scales_and_a_norm_behind_each_pooling():
    config = DARTS.model_copy(update={"operations": ("max_pool_3x3",)})
    torch.manual_seed(0)
    net = MixedNet(config, 10, 1)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.weight is None and norm.bias is None for norm in norms)
    assert all(isinstance(edge.operations[0][1], nn.BatchNorm2d) for cell in net.cells for edge in cell.edges)
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 10)


def test_a_cell_of_none_alone_gives_zeros():
    torch.manual_seed(0)
    net = MixedNet(DARTS, 10, 1)
    for alpha in net.alphas.values():
        alpha.data[:, 0] = 1e4
    torch.testing.assert_close(net(torch.rand(2, 1, 32, 32)), net.classifier.bias.expand(2, -1))
