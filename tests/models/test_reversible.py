"""Reversible layers: equations, inverses, gradients without stored activations, and what must not change by that."""

from __future__ import annotations

import os
import socket

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from convatlas.models.costs import activation_bytes, on_meta_device
from convatlas.models.layers.reversible import (
    AdditiveBlock,
    Coupling,
    ReversibleBlock,
    ReversibleSequence,
    depth_to_space,
    halves,
    recomputed,
    space_to_depth,
)


def smooth_branch(channels, dropout=0.0):
    """Build a branch without kinks, where a gradient does not jump with the last bit of an activation.

    No bias stands before batch normalisation, which would have no gradient but rounding.
    """
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.Softplus(),
        nn.Dropout(dropout),
        nn.Conv2d(channels, channels, 3, padding=1),
    )


def additive_sequence(units, channels=4, dropout=0.0, memory_saving=True):
    torch.manual_seed(0)
    blocks = [AdditiveBlock(smooth_branch(channels, dropout), smooth_branch(channels, dropout)) for _ in range(units)]
    return ReversibleSequence(*blocks, memory_saving=memory_saving)


def swapping_sequence(memory_saving=True, dropout=0.0):
    """Build couplings as i-RevNet has them, one of which makes channels of pixels."""
    torch.manual_seed(0)
    strided = nn.Sequential(
        nn.Conv2d(4, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.Dropout(dropout)
    )
    return ReversibleSequence(
        Coupling(smooth_branch(4, dropout)),
        Coupling(strided, downsampling=2),
        Coupling(smooth_branch(16, dropout)),
        memory_saving=memory_saving,
    )


def pair(channels=4, size=6, batch=3, dtype=torch.float32):
    torch.manual_seed(1)
    return tuple(torch.randn(batch, channels, size, size, dtype=dtype, requires_grad=True) for _ in range(2))


def backward(net, x1, x2):
    """Weigh the outputs by fixed random numbers and go back; return the gradients of the inputs and parameters."""
    torch.manual_seed(2)
    y1, y2 = net(x1, x2)
    weights = torch.Generator().manual_seed(3)
    loss = sum((y * torch.randn(y.shape, generator=weights).to(y)).sum() for y in (y1, y2))
    loss.backward()
    return {"x1": x1.grad, "x2": x2.grad} | {name: p.grad for name, p in net.named_parameters()}


def assert_near(found, expected, tolerance):
    """Compare gradients by the largest of each parameter, and of all for those that are zero but for rounding."""
    assert found.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        scale = torch.maximum(value.abs().max(), 1e-3 * largest)
        assert (found[name] - value).abs().max() <= tolerance * scale, name


# ---- equations ------------------------------------------------------------------------------------------------------


def test_space_to_depth_puts_the_upper_half_of_each_square_into_the_first_half_of_the_channels():
    x = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    y = space_to_depth(x, 2)
    assert y.shape == (1, 8, 2, 3)
    for i, j, c in [(0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 0)]:
        assert torch.equal(y[:, (i * 2 + j) * 2 + c], x[:, c, i::2, j::2])
    assert torch.equal(depth_to_space(y, 2), x)


def test_a_coupling_swaps_and_adds():
    coupling = Coupling(nn.Conv2d(2, 8, 3, stride=2, padding=1), downsampling=2)
    x1, x2 = pair(channels=2)
    y1, y2 = coupling(x1, x2)
    assert torch.equal(y1, space_to_depth(x2, 2))
    assert torch.equal(y2, space_to_depth(x1, 2) + coupling.branch(x2))


def test_an_additive_block_is_revnet_s_unit():
    block = AdditiveBlock(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), memory_saving=False)
    x1, x2 = pair()
    y1, y2 = block(x1, x2)
    assert torch.equal(y1, x1 + block.f.branch(x2))
    assert torch.equal(y2, x2 + block.g.branch(y1))


@pytest.mark.parametrize("build", [lambda: additive_sequence(9), swapping_sequence])
def test_the_inverse_gives_the_inputs(build):
    net = build().eval()
    x1, x2 = pair()
    with torch.no_grad():
        again = net.inverse(*net(x1, x2))
    for found, x in zip(again, (x1, x2), strict=True):
        assert (found - x).abs().max() < 1e-5


# ---- the backward pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [lambda **k: additive_sequence(9, **k), swapping_sequence])
def test_gradients_are_those_of_plain_autograd_in_float32(build, training, dropout):
    plain, saving = build(dropout=dropout, memory_saving=False), build(dropout=dropout)
    plain.train(training)
    saving.train(training)
    assert_near(backward(saving, *pair()), backward(plain, *pair()), 1e-5)


@pytest.mark.parametrize("build", [lambda **k: additive_sequence(3, **k), swapping_sequence])
def test_running_statistics_count_a_batch_once(build):
    plain, saving = build(memory_saving=False), build()
    for net in (plain, saving):
        backward(net, *pair())
    for (name, p), (_, q) in zip(plain.named_buffers(), saving.named_buffers(), strict=True):
        assert torch.equal(p, q), name
        assert "tracked" not in name or q == 1


def test_the_inverse_leaves_running_statistics_alone():
    net = additive_sequence(1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.inverse(*pair())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_generator_stands_behind_the_backward_pass_where_it_stood_before():
    net = additive_sequence(2, dropout=0.5)
    y1, y2 = net(*pair())
    state = torch.get_rng_state()
    (y1 + y2).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_accumulate():
    once, twice = additive_sequence(2), additive_sequence(2)
    single = backward(once, *pair())
    x1, x2 = pair()
    backward(twice, x1, x2)
    assert_near(backward(twice, x1, x2), {name: 2 * value for name, value in single.items()}, 1e-6)


def test_a_parameter_s_hook_sees_its_gradient_once():
    net = additive_sequence(2)
    weight = net.steps()[0].branch[0].weight
    seen = []
    weight.register_hook(lambda grad: seen.append(grad) or 2 * grad)
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    backward(net, *pair())
    assert len(seen) == 2
    assert torch.equal(seen[1], 2 * seen[0])


def test_a_parameter_that_two_steps_share_gets_the_sum_of_both_gradients():
    def build(memory_saving):
        torch.manual_seed(0)
        shared = smooth_branch(4)
        return ReversibleSequence(Coupling(shared), Coupling(shared), memory_saving=memory_saving).eval()

    assert_near(backward(build(True), *pair()), backward(build(False), *pair()), 1e-5)


def test_frozen_parameters_stay_without_gradient():
    net = additive_sequence(2)
    frozen = net.steps()[1].branch.requires_grad_(False)
    expected = additive_sequence(2, memory_saving=False)
    found = {name: g for name, g in backward(net, *pair()).items() if g is not None}
    assert all(p.grad is None for p in frozen.parameters())
    assert_near(found, {n: g for n, g in backward(expected, *pair()).items() if n in found}, 1e-5)


def test_an_input_without_gradient_and_an_output_that_is_an_input():
    net = ReversibleSequence(Coupling(nn.Conv2d(4, 4, 1)))
    x1, x2 = (x.detach() for x in pair())
    y1, y2 = net(x1, x2)
    assert torch.equal(y1, x2)
    (y1 * y2).sum().backward()
    weight = net.steps()[0].branch.weight
    expected = torch.einsum("bohw,bihw->oi", x2, x2)  # the gradient of y2 is y1, which is x2
    assert torch.allclose(weight.grad[:, :, 0, 0], expected, rtol=1e-5, atol=1e-4)


def test_gradients_of_some_inputs_alone():
    x1, x2 = pair()
    saving, plain = additive_sequence(2), additive_sequence(2, memory_saving=False)
    (found,) = torch.autograd.grad(sum(y.sum() for y in saving(x1, x2)), x1)
    (expected,) = torch.autograd.grad(sum(y.sum() for y in plain(x1, x2)), x1)
    assert_near({"x1": found}, {"x1": expected}, 1e-5)


def test_sequences_within_sequences_branches_and_checkpointed_regions():
    class Inner(nn.Module):
        def __init__(self, memory_saving):
            super().__init__()
            self.sequence = additive_sequence(2, channels=2, memory_saving=memory_saving)

        def forward(self, x):
            return torch.cat(self.sequence(*halves(x)), 1)

    class Checkpointed(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x1, x2):
            return checkpoint(self.net, x1, x2, use_reentrant=False)

    def build(memory_saving):
        torch.manual_seed(0)
        return ReversibleSequence(
            additive_sequence(1, dropout=0.2), Coupling(Inner(memory_saving)), memory_saving=memory_saving
        )

    expected = backward(build(False), *pair())
    assert_near(backward(build(True), *pair()), expected, 1e-5)
    found = backward(Checkpointed(build(True)), *pair())
    assert_near({name.removeprefix("net."): value for name, value in found.items()}, expected, 1e-5)


def test_a_block_with_an_inverse_alone_is_a_step():
    class Halve(ReversibleBlock):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(0.5))

        def forward(self, x1, x2):
            return self.factor * x1, x2 - x1

        def inverse(self, y1, y2):
            x1 = y1 / self.factor
            return x1, y2 + x1

    def build(memory_saving):
        return ReversibleSequence(additive_sequence(1), Halve(), additive_sequence(1), memory_saving=memory_saving)

    assert_near(backward(build(True), *pair()), backward(build(False), *pair()), 1e-5)


def test_steps_that_are_stored_change_no_gradient():
    saving, plain = additive_sequence(3), additive_sequence(3, memory_saving=False)
    saving.stored = 3
    assert_near(backward(saving, *pair()), backward(plain, *pair()), 1e-5)


def test_recomputed_layers_give_the_bits_of_plain_autograd_and_count_a_batch_once():
    plain, again = additive_sequence(1, memory_saving=False), additive_sequence(1, memory_saving=False)

    class Recomputed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = again

        def forward(self, x1, x2):
            return recomputed(self.net, x1, x2)

    expected = backward(plain, *pair())
    found = backward(Recomputed(), *pair())
    assert all(torch.equal(found[f"net.{name}" if "." in name else name], value) for name, value in expected.items())
    assert all(torch.equal(p, q) for p, q in zip(plain.buffers(), again.buffers(), strict=True))


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_stored_activations_do_not_grow_with_depth():
    def stored(units, memory_saving):
        net = on_meta_device(lambda: nn.Sequential(Pairs(additive_sequence(units, memory_saving=memory_saving))))
        return activation_bytes(net, torch.zeros(2, 8, 16, 16, device="meta", requires_grad=True))

    class Pairs(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return torch.cat(self.net(*halves(x)), 1)

    assert stored(3, True) == stored(9, True) == stored(27, True) == 2 * 8 * 16 * 16 * 4
    assert stored(27, False) > 8 * stored(3, False)


def test_live_tensors_do_not_grow_with_depth():
    """Count real storage: what is alive between the passes, by weak references to every output of a layer."""
    import weakref

    def alive(units, memory_saving):
        net = additive_sequence(units, memory_saving=memory_saving)
        storages = []
        for module in net.modules():
            if not isinstance(module, ReversibleBlock):
                module.register_forward_hook(lambda *args: storages.append(weakref.ref(args[2])))
        outputs = net(*pair())
        assert outputs[0].requires_grad
        return sum(reference() is not None for reference in storages)

    assert alive(2, True) == alive(6, True) == 0
    assert alive(6, False) >= 3 * alive(2, False) >= 1


# ---- precision ------------------------------------------------------------------------------------------------------


def test_under_autocast_branches_are_bfloat16_and_couplings_float32():
    net = additive_sequence(2)
    kinds = set()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *args: kinds.add(args[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y1, y2 = net(*(x.detach().bfloat16().requires_grad_() for x in pair()))
    assert (y1.dtype, y2.dtype) == (torch.float32, torch.float32)
    (y1 + y2).sum().backward()  # outside autocast, as training does
    assert kinds == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        again = net.inverse(y1.detach(), y2.detach())
    assert {x.dtype for x in again} == {torch.float32}


def test_under_autocast_gradients_are_plain_autograd_s_up_to_its_rounding():
    """A bfloat16 has 8 bits: an activation that comes back with other last bits can round to its neighbour."""
    gradients = []
    for saving in (True, False):
        net = additive_sequence(3, memory_saving=saving)
        with torch.autocast("cpu", torch.bfloat16):
            gradients.append(backward(net, *pair()))
    assert_near(*gradients, 2**-7)


@pytest.mark.parametrize(("dtype", "low", "high"), [(torch.float32, 0, 1e-4), (torch.bfloat16, 0.05, 10)])
def test_a_chain_of_couplings_in_bfloat16_does_not_come_back(dtype, low, high):
    """Why couplings stay in float32: 27 units without this package's conversion."""
    net = additive_sequence(27).to(dtype)
    x1, x2 = (x.detach().to(dtype) for x in pair())
    with torch.no_grad():
        y1, y2 = x1, x2
        for step in net.steps():
            y1, y2 = step(y1, y2)
        for step in reversed(net.steps()):
            y1, y2 = step.inverse(y1, y2)
    assert low <= (y1 - x1).abs().max() < high


# ---- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_on_a_gpu_dropout_draws_the_same_and_the_peak_does_not_grow_with_depth():
    def peak(units):
        net = additive_sequence(units, channels=32, dropout=0.3).cuda()
        x1, x2 = (x.detach().cuda().requires_grad_() for x in pair(channels=32, size=64, batch=16))
        backward(net, x1, x2)
        net.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sum(y.sum() for y in net(x1, x2)).backward()
        return torch.cuda.max_memory_allocated() - before

    gradients = []
    for saving in (True, False):
        net = additive_sequence(3, dropout=0.3, memory_saving=saving).double().cuda()
        gradients.append(backward(net, *(x.detach().double().cuda().requires_grad_() for x in pair())))
    assert_near(*gradients, 1e-9)
    parameters = 24 * 2 * 2 * 9 * 32 * 32 * 4  # gradients of the longer net's convolutions
    assert peak(27) - parameters < 1.05 * peak(3)


# ---- several processes ----------------------------------------------------------------------------------------------


def _train_in_process(rank, port, queue):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        net = DistributedDataParallel(additive_sequence(3).eval())
        x1, x2 = (x.detach()[rank : rank + 1].requires_grad_() for x in pair(batch=2))
        for _ in range(2):  # the second step fails if the first one's gradients were not all seen
            net.zero_grad()
            sum(y.square().sum() for y in net(x1, x2)).backward()
        queue.put({name: p.grad.numpy() for name, p in net.module.named_parameters()})
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_their_gradients():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_train_in_process, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    plain = additive_sequence(3, memory_saving=False).eval()
    sum(y.square().sum() for y in plain(*pair(batch=2))).backward()
    mean = {name: p.grad / 2 for name, p in plain.named_parameters()}
    for gradients in found:
        assert_near({name: torch.from_numpy(value) for name, value in gradients.items()}, mean, 1e-5)


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_a_second_derivative_is_refused():
    x1, x2 = pair()
    y1, _ = additive_sequence(1)(x1, x2)
    with pytest.raises(RuntimeError, match=r"no second derivative .*memory_saving=False"):
        torch.autograd.grad(y1.sum(), x1, create_graph=True)


def test_a_branch_that_works_in_place_is_refused():
    net = ReversibleSequence(Coupling(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))))
    with pytest.raises(RuntimeError, match=r"changed its input in place.* inplace=False"):
        net(*(x.detach() for x in pair()))


def test_a_branch_of_another_shape_is_refused_and_not_broadcast():
    with pytest.raises(ValueError, match=r"gives \(3, 1, 6, 6\), where \(3, 4, 6, 6\) is wanted"):
        Coupling(nn.Conv2d(4, 1, 1))(*pair())


def test_a_block_that_draws_outside_a_coupling_is_refused():
    class Draws(ReversibleBlock):
        def forward(self, x1, x2):
            return x1 + torch.randn_like(x1), x2

        def inverse(self, y1, y2):
            return y1, y2

    with pytest.raises(RuntimeError, match=r"^Draws draws random numbers"):
        ReversibleSequence(Draws())(*pair())


def test_channels_and_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"^5 channels cannot be split"):
        halves(torch.zeros(1, 5, 4, 4))
    with pytest.raises(ValueError, match=r"^A map of 4x5 pixels does not divide"):
        space_to_depth(torch.zeros(1, 2, 4, 5), 2)
    with pytest.raises(ValueError, match=r"^6 channels do not divide"):
        depth_to_space(torch.zeros(1, 6, 4, 4), 2)
