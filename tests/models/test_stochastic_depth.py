"""Stochastic depth: the gates, what a closed block leaves out, and the nets that have them."""

import copy
from itertools import pairwise
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from convatlas.models.classification.preact_resnet_cifar import PreactResNetCifar
from convatlas.models.classification.stochastic_depth import (
    BasicBlock,
    BranchWeight,
    GatedTimmBlock,
    StochasticDepthResNet,
    TimmWithStochasticDepth,
)
from convatlas.models.classification.wide_resnet import WideBlock, WideResNet
from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.interfaces import FollowsTraining, HasFigures
from convatlas.models.layers.stochastic_depth import Gates, survival_probabilities


def shut(net, *indices):
    """Let every batch leave out these blocks, and no others."""
    net.gates.draw = lambda: None
    net.gates.open = tuple(i not in indices for i in range(len(net.gates.survival)))
    if not isinstance(net, TimmWithStochasticDepth):
        net.gates.weights = lambda _training: tuple(map(float, net.gates.open))


def blocks_of(net):
    return [m for m in net.modules() if isinstance(m, BasicBlock)]


def bits_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# ---- gates ----------------------------------------------------------------------------------------------------------


def test_linear_survival_falls_from_the_first_block_to_exactly_the_last():
    survival = survival_probabilities(0.5, "linear", 54)
    assert survival[0] == 1 - 0.5 / 54
    assert survival[-1] == 0.5
    assert all(abs(b - a + 0.5 / 54) < 1e-15 for a, b in pairwise(survival))
    assert sum(survival) == pytest.approx((3 * 54 - 1) / 4, abs=1e-9)


def test_uniform_survival_is_the_same_for_every_block():
    assert survival_probabilities(0.2, "uniform", 3) == (0.2, 0.2, 0.2)


@pytest.mark.parametrize("schedule", ["linear", "uniform"])
def test_survival_one_is_exactly_one_for_every_block(schedule):
    assert set(survival_probabilities(1.0, schedule, 54)) == {1.0}


def test_on_average_40_and_a_quarter_of_54_blocks_are_open():
    gates = Gates(survival_probabilities(0.5, "linear", 54))
    gates.seed(0)
    assert fmean(sum(gates.draw()) for _ in range(10_000)) == pytest.approx(40.25, abs=0.1)


def test_each_gate_opens_with_its_own_probability_and_apart_from_the_others():
    gates = Gates((0.9, 0.5, 0.1))
    gates.seed(1)
    draws = torch.tensor([gates.draw() for _ in range(20_000)]).double()
    assert torch.allclose(draws.mean(0), torch.tensor([0.9, 0.5, 0.1]).double(), atol=0.015)
    assert (torch.corrcoef(draws.T) - torch.eye(3)).abs().max() < 0.03


def test_equal_seeds_draw_equal_gates_whatever_torch_s_own_generator_does():
    drawn = []
    for rank in range(2):
        torch.manual_seed(100 + rank)
        net = StochasticDepthResNet(depth=20, width=2)
        steps = []
        for step in range(5):
            net.begin_step(step, 5, seed=7 + step)
            net(torch.rand(2, 3, 8, 8))
            steps.append(net.gates.open)
        drawn.append(steps)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1


def test_without_a_seed_the_gates_follow_torch_s_own_generator():
    gates = Gates((0.5,) * 20)
    torch.manual_seed(3)
    first, second = gates.draw(), gates.draw()
    torch.manual_seed(3)
    assert gates.draw() == first != second


def test_seeded_gates_leave_torch_s_own_generator_alone():
    gates = Gates((0.5,) * 20)
    gates.seed(0)
    before = torch.get_rng_state()
    gates.draw()
    assert torch.equal(torch.get_rng_state(), before)


def test_gates_are_no_tensors_even_under_another_default_device():
    gates = Gates((0.5,) * 4)
    with torch.device("meta"):
        assert {type(weight) for weight in gates.weights(training=True)} == {float}


@pytest.mark.parametrize("survival", [0.0, -0.5, 1.01, float("nan")])
@pytest.mark.parametrize("net", [StochasticDepthResNet, PreactResNetCifar, WideResNet])
def test_survival_outside_of_its_range_is_refused(net, survival):
    with pytest.raises(ValueError, match=rf"^model\.survival={survival} .*above 0 and at most 1\.$"):
        net(survival=survival)


def test_unknown_schedules_and_sizes_are_refused():
    with pytest.raises(ValueError, match=r"^model\.schedule=cosine .*linear, uniform\.$"):
        StochasticDepthResNet(schedule="cosine")
    with pytest.raises(ValueError, match=r"^model\.depth=111 .*110 and 116\.$"):
        StochasticDepthResNet(depth=111)
    with pytest.raises(ValueError, match=r"^model\.width=0 "):
        StochasticDepthResNet(width=0)


# ---- the block ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "stride"), [(3, 1), (5, 2)])
def test_an_open_block_counts_in_full_in_training_and_by_its_weight_in_evaluation(out, stride):
    torch.manual_seed(0)
    block = BasicBlock(3, out, stride).eval()
    x = torch.rand(2, 3, 8, 6)
    conv1, bn1, _, conv2, bn2 = block.branch
    branch = bn2(conv2(F.relu(bn1(conv1(x)))))
    shortcut = torch.zeros_like(branch)
    shortcut[:, :3] = x if stride == 1 else x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    assert torch.allclose(block(x, 1.0), F.relu(branch + shortcut), atol=1e-6)
    assert torch.allclose(block(x, 0.3), F.relu(0.3 * branch + shortcut), atol=1e-6)
    assert (branch < -shortcut).any()


def test_the_shortcut_of_an_odd_map_has_the_size_of_the_branch():
    block = BasicBlock(2, 4, stride=2)
    x = torch.rand(2, 2, 7, 5)
    assert block(x, 0.0).shape == block(x, 1.0).shape == (2, 4, 4, 3)
    assert torch.equal(block(x, 0.0)[:, :2, -1, -1], x[:, :, -1, -1])


@pytest.mark.parametrize(("out", "stride"), [(3, 1), (5, 2)])
def test_a_closed_block_is_its_shortcut_and_touches_nothing_of_the_branch(out, stride):
    block = BasicBlock(3, out, stride)
    calls = []
    block.branch.register_forward_hook(lambda *_: calls.append(1))
    before = bits_of(block)
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    output = block(x, 0.0)
    output.sum().backward()
    assert torch.equal(output, block.shortcut(x))
    assert calls == []
    assert [p.grad for p in block.parameters()] == [None] * 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert torch.equal(x.grad, torch.full_like(x, 1.0 if stride == 1 else 0.25))


# ---- the net --------------------------------------------------------------------------------------------------------


# The paper's: 1.7M, and 19.4M for 1202 layers; to the parameter they follow from the list of layers.
@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(110, 1_727_962), (152, 2_408_474), pytest.param(1202, 19_421_274, marks=pytest.mark.slow)],
)
def test_the_published_depths_have_their_parameters(depth, parameters):
    net = on_meta_device(lambda: StochasticDepthResNet(depth=depth))
    assert count_parameters(net) == parameters
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth


def test_biases_would_give_the_number_of_the_released_code():
    net = on_meta_device(StochasticDepthResNet)
    biases = sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d))
    assert count_parameters(net) + biases == 1_732_010


def plain_forward(net, images):
    """Compute a net of constant depth from its weights alone."""
    x = net.stem(images)
    for block in blocks_of(net):
        x = F.relu(block.branch(x) + block.shortcut(x))
    return net.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("schedule", ["linear", "uniform"])
def test_survival_one_is_the_plain_net_in_every_bit_and_draws_nothing(schedule):
    torch.manual_seed(0)
    net = StochasticDepthResNet(depth=20, width=4, survival=1.0, schedule=schedule)
    plain = copy.deepcopy(net)
    images, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
    generator = torch.get_rng_state()
    output, expected = net(images), plain_forward(plain, images)
    assert torch.equal(torch.get_rng_state(), generator)
    loss, expected_loss = F.cross_entropy(output, labels), F.cross_entropy(expected, labels)
    loss.backward()
    expected_loss.backward()
    assert torch.equal(output, expected)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), plain.parameters(), strict=True))
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in net.state_dict().items())
    assert torch.equal(net.eval()(images), plain_forward(plain.eval(), images))


def test_gates_change_neither_the_weights_a_net_starts_with_nor_their_names():
    states = []
    for survival in (1.0, 0.5):
        torch.manual_seed(0)
        states.append(StochasticDepthResNet(depth=20, width=4, survival=survival).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_with_all_gates_closed_the_features_are_the_stem_s_pooled_and_padded():
    net = StochasticDepthResNet(depth=20, width=4)
    shut(net, *range(9))
    before = bits_of(net)
    images = torch.rand(2, 3, 16, 16)
    features = net.forward_features(images)
    net.classifier(features.mean((2, 3))).sum().backward()
    assert torch.allclose(features[:, :4], F.avg_pool2d(net.stem(images), 4), atol=1e-6)
    assert features[:, 4:].abs().max() == 0
    without = {name for name, p in net.named_parameters() if p.grad is None}
    assert without == {name for name, _ in net.named_parameters() if name.startswith("stage")}
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items() if n.startswith("stage"))


def test_a_closed_block_in_the_net_acts_as_the_equation_with_its_relu():
    torch.manual_seed(0)
    net = StochasticDepthResNet(depth=20, width=4).double()
    masked = copy.deepcopy(net)
    shut(net, 1, 3, 8)
    images = torch.rand(2, 3, 16, 16).double()
    net(images).square().sum().backward()
    x = masked.stem(images)
    for index, block in enumerate(blocks_of(masked)):
        x = F.relu((0.0 if index in {1, 3, 8} else 1.0) * block.branch(x) + block.shortcut(x))
    masked.classifier(x.mean((2, 3))).square().sum().backward()
    for p, q in zip(net.parameters(), masked.parameters(), strict=True):
        assert torch.allclose(torch.zeros_like(p) if p.grad is None else p.grad, q.grad, atol=1e-12)


def test_the_branches_called_are_those_whose_gates_are_open():
    torch.manual_seed(0)
    net = StochasticDepthResNet(depth=20, width=2)
    calls, called, told = [], 0, 0.0
    for index, block in enumerate(blocks_of(net)):
        block.branch.register_forward_hook(lambda *_, index=index: calls.append(index))
    for step in range(20):
        calls.clear()
        net.begin_step(step, 20, seed=step)
        net(torch.rand(2, 3, 4, 4))
        assert calls == [i for i, gate in enumerate(net.gates.open) if gate]
        called += len(calls)
        told += net.step_figures()["active_blocks"]
    assert called < 20 * 9
    assert told == pytest.approx(called / 9)


def test_a_block_left_out_counts_no_batch_and_the_others_count_one():
    net = StochasticDepthResNet(depth=20, width=2)
    shut(net, 4)
    net(torch.rand(2, 3, 8, 8))
    assert [int(block.branch[1].num_batches_tracked) for block in blocks_of(net)] == [1, 1, 1, 1, 0, 1, 1, 1, 1]


def test_evaluation_weights_every_branch_by_its_survival_and_draws_nothing():
    torch.manual_seed(0)
    net = StochasticDepthResNet(depth=20, width=4).eval()
    images = torch.rand(2, 3, 16, 16)
    generator = torch.get_rng_state()
    output = net(images)
    assert torch.equal(torch.get_rng_state(), generator)
    x = net.stem(images)
    for number, block in enumerate(blocks_of(net), start=1):
        x = F.relu((1 - number / 9 * 0.5) * block.branch(x) + block.shortcut(x))
    assert torch.allclose(output, net.classifier(x.mean((2, 3))), atol=1e-6)


def test_the_optimiser_passes_by_a_block_that_was_left_out():
    net = StochasticDepthResNet(depth=8, width=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    net.gates.weights = lambda _training: (1.0, 1.0, 1.0)
    net(torch.rand(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    shut(net, 1)
    left_out, others = bits_of(net.stage2), bits_of(net.stage1)
    net(torch.rand(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, left_out[name]) for name, tensor in net.stage2.state_dict().items())
    assert not torch.equal(net.stage1[0].branch[0].weight, others["0.branch.0.weight"])


def test_a_net_offers_what_the_training_asks_for():
    net, constant = StochasticDepthResNet(depth=8, width=2), StochasticDepthResNet(depth=8, width=2, survival=1.0)
    assert isinstance(net, FollowsTraining)
    assert isinstance(net, HasFigures)
    assert (net.leaves_gradients_out, constant.leaves_gradients_out) == (True, False)
    assert (net.step_figures(), constant.step_figures()) == ({"active_blocks": 1.0}, {})


def test_a_copy_goes_on_alike_and_draws_for_itself():
    net = StochasticDepthResNet(depth=56, width=1)
    net.begin_step(0, 1, seed=5)
    net.gates.draw()
    other = copy.deepcopy(net)
    assert other.gates is not net.gates
    drawn = [net.gates.draw() for _ in range(3)]
    assert [other.gates.draw() for _ in range(3)] == drawn
    assert len(set(drawn)) == 3


def test_a_stage_computed_again_for_its_gradient_goes_the_same_way():
    torch.manual_seed(0)
    net = StochasticDepthResNet(depth=20, width=2)
    again = copy.deepcopy(net)
    images = torch.rand(2, 3, 8, 8)
    for each in (net, again):
        each.begin_step(0, 1, seed=2)
    for name in ("stage1", "stage2", "stage3"):
        stage = getattr(again, name)
        plain = stage.forward
        stage.forward = lambda x, weights, plain=plain: checkpoint(plain, x, weights, use_reentrant=False)
    output = again(images)
    opened = again.gates.open
    while again.gates.draw() == opened:  # another batch comes before the backward pass of this one
        pass
    net(images).sum().backward()
    output.sum().backward()
    assert 0 < sum(opened) < 9
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)


@pytest.mark.slow
def test_branches_compile_to_whole_graphs_that_serve_every_combination_of_gates():
    torch._dynamo.reset()
    counter = CompileCounter()
    net = StochasticDepthResNet(depth=14, width=2)
    for block in blocks_of(net):
        block.branch.compile(backend=counter, fullgraph=True)
    combinations = set()
    for step in range(8):
        net.begin_step(step, 8, seed=step)
        net(torch.rand(2, 3, 8, 8)).sum().backward()
        combinations.add(net.gates.open)
    torch._dynamo.reset()
    assert counter.frame_count == 5  # two shapes of branch in the second and in the third stage, one in the first
    assert len(combinations) > 5


def test_a_net_in_evaluation_exports_with_its_weights():
    net = StochasticDepthResNet(depth=8, width=2).eval()
    images = torch.rand(1, 3, 8, 8)
    exported = torch.export.export(net, (images,)).module()
    assert torch.equal(exported(images), net(images))


# ---- the same gates in other nets -----------------------------------------------------------------------------------


def small_preact(**options):
    return PreactResNetCifar(20, width=4, **options)


def small_bottleneck(**options):
    return PreactResNetCifar(29, True, width=4, **options)


def small_wide(**options):
    return WideResNet(depth=16, width=1, **options)


PREACTIVATION = [small_preact, small_bottleneck, small_wide]


def in_order(net):
    return net.blocks if isinstance(net, WideResNet) else [*net.stage1, *net.stage2, *net.stage3]


@pytest.mark.parametrize("build", PREACTIVATION)
def test_a_preactivation_net_without_gates_is_what_it_was(build):
    torch.manual_seed(0)
    net = build()
    images, generator = torch.rand(2, 3, 16, 16), torch.get_rng_state()
    output = net(images)
    assert torch.equal(torch.get_rng_state(), generator)
    assert (net.leaves_gradients_out, net.step_figures()) == (False, {})
    x = net.stem(images)
    for block in in_order(net):
        x = block(x)
    assert torch.equal(output, net.classifier(F.relu(net.norm(x)).mean((2, 3))))
    torch.manual_seed(0)
    gated = build(survival=0.5)
    assert list(gated.state_dict()) == list(net.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(gated.parameters(), net.parameters(), strict=True))


def input_of(block):
    channels = (block.norms[0] if isinstance(block, WideBlock) else block.bn1).num_features
    return torch.randn(2, channels, 8, 8, requires_grad=True)


def last_convolution(block):
    return block.convolutions[-1] if isinstance(block, WideBlock) else getattr(block, "conv3", block.conv2)


def shortcut_starts_behind_the_first_activation(block):
    return block.projection is not None if isinstance(block, WideBlock) else block.shared


@pytest.mark.parametrize("build", PREACTIVATION)
def test_a_closed_preactivation_block_is_what_a_branch_of_zero_gives(build):
    torch.manual_seed(0)
    for block in in_order(build(survival=0.5)):
        x = input_of(block)
        closed = block(x, 0.0)
        assert not torch.equal(block(x, 1.0), closed)
        nn.init.zeros_(last_convolution(block).weight)
        assert torch.equal(block(x, 1.0), closed)


@pytest.mark.parametrize("build", PREACTIVATION)
def test_a_closed_preactivation_block_trains_its_shortcut_alone(build):
    for block in in_order(build(survival=0.5)):
        before = bits_of(block)
        block(input_of(block), 0.0).sum().backward()
        trained = {name for name, p in block.named_parameters() if p.grad is not None}
        of_shortcut = {n for n in before if n.startswith(("shortcut.", "projection.", "bn1.", "norms.0."))}
        if not shortcut_starts_behind_the_first_activation(block):
            of_shortcut = set()
        assert trained == of_shortcut & {name for name, _ in block.named_parameters()}
        changed = {name for name, tensor in block.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == {name for name in of_shortcut if "running" in name or "tracked" in name}


@pytest.mark.parametrize("build", PREACTIVATION)
def test_a_preactivation_block_in_evaluation_weights_its_branch(build):
    torch.manual_seed(0)
    for block in in_order(build(survival=0.5).eval()):
        x = input_of(block)
        shortcut = block(x, 0.0)
        assert torch.allclose(block(x, 0.3), 0.3 * (block(x, 1.0) - shortcut) + shortcut, atol=1e-5)


@pytest.mark.parametrize("build", PREACTIVATION)
def test_a_preactivation_net_gives_each_block_its_own_weight(build):
    net = build(survival=0.5, schedule="linear").eval()
    given = []
    for block in in_order(net):
        block.register_forward_pre_hook(lambda _block, arguments: given.append(arguments[1]))
    net(torch.rand(2, 3, 16, 16))
    assert given == list(survival_probabilities(0.5, "linear", len(in_order(net))))


# ---- nets of timm ---------------------------------------------------------------------------------------------------


def small_timm(model_name="resnet18", **options):
    if model_name.startswith("resnet"):
        options = {"channels": (8, 16, 16, 16), "stem_width": 8, "stem_type": "deep", **options}
    return TimmWithStochasticDepth(model_name=model_name, num_classes=5, **options)


def gated_blocks(net):
    return [m for m in net.modules() if isinstance(m, GatedTimmBlock)]


@pytest.mark.parametrize(("model_name", "blocks"), [("resnet18", 8), ("resnet26", 8), ("mobilenetv2_035", 10)])
def test_timm_nets_have_a_gate_for_each_residual_block(model_name, blocks):
    net = on_meta_device(lambda: small_timm(model_name))
    assert [m.index for m in gated_blocks(net)] == list(range(blocks))
    assert [m.block.drop_path.survival for m in gated_blocks(net)] == list(net.gates.survival)
    assert all(m.gates is net.gates for m in gated_blocks(net))


@pytest.mark.parametrize("model_name", ["resnet18", "resnet26", "mobilenetv2_035"])
def test_survival_one_is_timm_s_own_net_in_every_bit(model_name):
    torch.manual_seed(0)
    net = small_timm(model_name, survival=1.0)
    own = copy.deepcopy(net)
    for gated in gated_blocks(own):
        gated.block.drop_path = nn.Identity()
        gated.forward = gated.block.forward
    images, generator = torch.rand(2, 3, 32, 32), torch.get_rng_state()
    output = net(images)
    assert torch.equal(torch.get_rng_state(), generator)
    expected = own.net(images)
    output.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(output, expected)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), own.parameters(), strict=True))
    assert torch.equal(net.eval()(images), own.eval().net(images))


@pytest.mark.parametrize("model_name", ["resnet18", "resnet26", "mobilenetv2_035"])
def test_closed_timm_blocks_equal_a_branch_of_zero_and_touch_nothing_of_it(model_name):
    torch.manual_seed(0)
    net = small_timm(model_name)
    masked = copy.deepcopy(net)
    closed = {0, 1, 2, 5, 7}
    shut(net, *closed)
    shut(masked)
    for gated in gated_blocks(masked):
        if gated.index in closed:
            gated.block.drop_path.forward = torch.zeros_like
    before = bits_of(net)
    images = torch.rand(2, 3, 64, 64)
    output, expected = net(images), masked(images)
    output.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(output, expected)
    for gated, other in zip(gated_blocks(net), gated_blocks(masked), strict=True):
        for (name, p), q in zip(gated.block.named_parameters(), other.block.parameters(), strict=True):
            of_branch = not name.startswith("downsample")
            assert (p.grad is None) == (of_branch and gated.index in closed)
            assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-4)
    closed_blocks = tuple(f"{name}.block." for name, m in net.named_modules() if getattr(m, "index", None) in closed)
    of_branches = [n for n in before if n.startswith(closed_blocks) and ".downsample." not in n]
    assert len(of_branches) > 50
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in of_branches)


def test_a_timm_net_in_evaluation_weights_its_branches():
    torch.manual_seed(0)
    net = small_timm("resnet18").eval()
    gated = gated_blocks(net)[-1]
    block, x = gated.block, torch.rand(2, 16, 4, 4)
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    assert torch.allclose(gated(x), F.relu(0.5 * branch + x), atol=1e-6)


def test_a_timm_net_draws_once_a_batch_and_copies_share_no_gates():
    net = small_timm("resnet18")
    other = copy.deepcopy(net)
    assert other.gates is not net.gates
    assert all(m.gates is other.gates for m in gated_blocks(other))
    for each in (net, other):
        each.begin_step(0, 1, seed=3)
        each(torch.rand(2, 3, 32, 32))
    gates = Gates(net.gates.survival)
    gates.seed(3)
    assert net.gates.open == other.gates.open == gates.draw()
    assert net.step_figures() == {"active_blocks": sum(net.gates.open) / 8}


def test_timm_nets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"^model\.model_name=vgg11 has no residual block .*resnet50"):
        on_meta_device(lambda: TimmWithStochasticDepth(model_name="vgg11"))
    with pytest.raises(ValueError, match=r"^model\.model_name=convnext_atto has no residual block "):
        on_meta_device(lambda: TimmWithStochasticDepth(model_name="convnext_atto"))
    with pytest.raises(ValueError, match=r"^model\.drop_path_rate=0\.1 does not go with stochastic depth"):
        small_timm(drop_path_rate=0.1)
    with pytest.raises(ValueError, match=r"^model\.survival=0 "):
        small_timm(survival=0)


def test_a_branch_is_left_as_it_is_in_training():
    x = torch.rand(2, 3)
    assert BranchWeight(0.5)(x) is x
    assert torch.equal(BranchWeight(0.5).eval()(x), 0.5 * x)
