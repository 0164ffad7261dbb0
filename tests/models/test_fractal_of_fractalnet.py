"""Fractal of FractalNet: the wiring of the authors' four nets, and which branch trains when."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convatlas.models.classification.fractal_of_fractalnet import (
    FractalOfFractalNet,
    FreezeSchedule,
    freeze_drop_path,
)
from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.interfaces import FollowsTraining, HasFigures, HasParts
from convatlas.models.layers.fractal import FractalConv

SIMPLEST, COMPLEX = 0, 9
"""Steps of a deterministic cycle of ten in which branch 0 and branch 1 are active."""


def small(**options):
    torch.manual_seed(0)
    return FractalOfFractalNet(**{"width": 1 / 64, "columns": 2, "image_size": 16, **options})


def staged(**options):
    """The net under freeze-drop-path, whose active branch the step decides."""
    return small(training="freeze_drop_path", freeze_schedule="deterministic", freeze_cycle=10, **options)


def at(net, step):
    net.begin_step(step, 10, seed=step)
    return net


def used(net):
    """Give every normalisation statistics, as after a training."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    return net


def images(batch=4):
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def branches(net, x):
    middle = (net.a2(net.a1(x)) + net.b(x)) / 2
    return net.c2(net.c1(middle)), net.d(middle), net.e(x)


def gradients(net):
    """Say which of the net's children have received a gradient that is not zero, and which none at all."""
    found = {}
    for name, child in net.named_children():
        weights = [m.weight for m in child.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        if weights:
            found[name] = any(w.grad is not None and bool(w.grad.any()) for w in weights)
            assert found[name] or all(w.grad is None for w in weights), "nothing, not even zeros"
    return found


# ---- size and wiring ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", ["joint", "freeze_drop_path"])
def test_the_size_of_the_authors_net(training):
    net = on_meta_device(lambda: FractalOfFractalNet(training=training)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = net.forward_features(torch.empty(1, 3, 32, 32, device="meta"))
    assert features.shape == (1, 512, 2, 2)
    assert count_parameters(net) == 38_504_586
    assert net.classifier.in_features == 2048
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 49
    assert counter.get_total_flops() / 2 + 2048 * 10 == 11_817_144_320


def test_four_fifths_of_the_computation_are_in_the_simplest_branch():
    net = on_meta_device(FractalOfFractalNet).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.e(torch.empty(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() / 2 / 11_817_144_320 == pytest.approx(0.82, abs=0.005)


@pytest.mark.parametrize(
    ("training", "taylor", "combine"),
    [
        ("joint", False, lambda c, d, e: (c + d + e) / 3),
        ("joint", True, lambda c, d, e: (c**3 + d**2 + e) / 3),
        ("freeze_drop_path", False, lambda c, d, e: e + (c + d) / 2),
        ("freeze_drop_path", True, lambda c, d, e: e + ((c + d) / 2) ** 2),
    ],
    ids=["FoF", "FoF-TSN", "SBN-FDP", "TSN-FDP"],
)
def test_the_last_join_in_evaluation(training, taylor, combine):
    net = used(small(training=training, taylor=taylor)).eval()
    x = images()
    features = net.forward_features(x)
    assert torch.allclose(features, combine(*branches(net, x)), atol=1e-5)
    if training == "freeze_drop_path":
        features = net.norms[1](features)
    assert torch.allclose(net(x), net.classifier(features.flatten(1)), atol=1e-5)


def test_a_joint_net_without_drop_path_trains_what_it_evaluates():
    net, x = small(), images()
    assert torch.allclose(net.forward_features(x), sum(branches(net, x)) / 3, atol=1e-5)
    net(x).sum().backward()
    assert all(gradients(net).values())


def test_powers_are_of_float32_and_cut_off():
    net = small(taylor=True)
    x = torch.tensor([0.5, 3.0, 100.0], dtype=torch.bfloat16)
    assert net._power(x, 2).tolist() == [0.25, 9.0, 1600.0]
    assert net._power(x, 3).tolist() == [0.125, 27.0, 64000.0]
    assert torch.isfinite(net._power(x, 3).half()).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert net.eval().forward_features(images()).dtype == torch.float32


# ---- freeze-drop-path -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [0, 1, 2])
def test_the_sum_holds_the_branches_up_to_the_active_one_which_alone_has_a_gradient(active):
    x = [torch.full((2,), 10.0**i, requires_grad=True) for i in range(3)]
    computed = []

    def branch(i):
        computed.append(i)
        return x[i] * 2

    total = freeze_drop_path([lambda i=i: branch(i) for i in range(3)], active)
    total.sum().backward()
    assert total.tolist() == [2 * sum(10.0**i for i in range(active + 1))] * 2
    assert computed == list(range(active + 1))
    assert [tensor.grad is not None for tensor in x] == [i == active for i in range(3)]


def test_in_the_first_stage_the_simplest_branch_alone_is_computed_and_trained():
    net, x = at(staged(), SIMPLEST), images()
    calls = []
    for block in (net.a1, net.a2, net.b, net.c1, net.c2, net.d):
        block.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(net.forward_features(x), net.e(x))
    net(x).square().sum().backward()
    assert gradients(net) == {name: name in {"e", "classifier"} for name in gradients(net)}
    assert calls == []


def test_in_the_second_stage_the_simplest_branch_contributes_and_is_frozen():
    net, x = at(staged(), COMPLEX), images()
    c, d, e = branches(net, x)
    assert e.abs().max() > 0
    assert torch.allclose(net.forward_features(x), e + (c + d) / 2, atol=1e-5)
    net(x).square().sum().backward()
    assert gradients(net) == {name: name != "e" for name in gradients(net)}


def test_frozen_weights_are_untouched_by_momentum_and_weight_decay():
    net = staged()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in (SIMPLEST, COMPLEX):
        before = [p.detach().clone() for p in net.e.parameters()]
        optimizer.zero_grad()
        at(net, step)(images()).square().sum().backward()
        optimizer.step()
        same = [torch.equal(p, q) for p, q in zip(net.e.parameters(), before, strict=True)]
        assert all(same) if step == COMPLEX else not any(same[::2])


def test_each_sum_has_its_own_statistics_and_evaluation_uses_those_of_the_whole(tmp_path):
    net, x = staged(), images()
    for step in (SIMPLEST, SIMPLEST, COMPLEX):
        at(net, step)(x)
    assert [int(norm.num_batches_tracked) for norm in net.norms] == [2, 1]
    net.eval()
    part = net.parts()["branch_0"]
    assert torch.allclose(part(x), net.classifier(net.norms[0](net.e(x)).flatten(1)))
    assert isinstance(net, HasParts)
    save_file(part.state_dict(), tmp_path / "part.safetensors")
    part.load_state_dict(load_file(tmp_path / "part.safetensors"))
    assert small().parts() == {}


# ---- the schedule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("proportions", "share"), [("squares", 0.8), ("equal", 0.5), ("reversed_squares", 0.2)])
def test_how_often_the_second_branch_is_drawn(proportions, share):
    schedule = FreezeSchedule(2, "stochastic", proportions, None)
    generator = torch.Generator().manual_seed(0)
    drawn = [schedule.active(0, 1, generator) for _ in range(10_000)]
    assert sum(drawn) / 10_000 == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize(
    ("proportions", "lengths"), [("squares", (1, 4, 9)), ("equal", (5, 5, 4)), ("reversed_squares", (9, 4, 1))]
)
def test_a_deterministic_cycle_goes_through_the_branches_in_one_interval_each(proportions, lengths):
    schedule = FreezeSchedule(3, "deterministic", proportions, 14)
    once = [branch for branch, length in enumerate(lengths) for _ in range(length)]
    assert [schedule.active(step, 1000, None) for step in range(28)] == once * 2


def test_without_a_cycle_each_branch_trains_once_in_the_whole_training():
    schedule = FreezeSchedule(2, "deterministic", "squares", None)
    assert [schedule.active(step, 50, None) for step in range(50)] == [0] * 10 + [1] * 40


def test_the_stage_is_a_function_of_step_and_seed_so_that_a_resumed_run_is_in_it():
    def stages(net, steps):
        found = []
        for step in steps:
            net.begin_step(step, 20, seed=step)
            net(images(2))
            found.append(net.step_figures()["stage"])
        return found

    for schedule in ("stochastic", "deterministic"):
        options = {"training": "freeze_drop_path", "freeze_schedule": schedule, "drop_path_rate": 0.3}
        whole = stages(small(**options), range(20))
        torch.manual_seed(5)
        assert stages(small(**options), range(12, 20)) == whole[12:]
        assert set(whole) == {0.0, 1.0}


def test_a_net_that_is_told_no_step_draws_by_itself_or_stands_at_the_first():
    net = small(training="freeze_drop_path")
    seen = set()
    for _ in range(30):
        net(images(2))
        seen.add(net.step_figures()["stage"])
    assert seen == {0.0, 1.0}
    net = staged()
    net(images(2))
    assert net.step_figures()["stage"] == 0


# ---- drop-path ------------------------------------------------------------------------------------------------------


def test_of_a_joint_net_only_what_the_last_join_uses_is_computed_and_gets_a_gradient():
    net = small(drop_path_rate=0.6)
    every = {name: m for name, m in net.named_modules() if isinstance(m, FractalConv)}
    calls = []
    for name, module in every.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    blocks = set()
    for seed in range(25):
        calls.clear()
        net.zero_grad()
        net.begin_step(seed, 25, seed)
        net(images()).square().sum().backward()
        assert set(calls) == {name for name, m in every.items() if m.conv.weight.grad is not None}
        assert net.step_figures() == {"convolutions_computed": pytest.approx(len(calls) / 21)}
        blocks.add(frozenset(name.split(".")[0] for name in calls))
    assert {"e"} in blocks
    assert all(("a1" in found) == ("a2" in found) and ("c1" in found) == ("c2" in found) for found in blocks)


def test_at_a_rate_near_one_one_way_leads_through_the_net():
    net, seen = small(drop_path_rate=1 - 1e-9), []
    for seed in range(300):
        net.begin_step(seed, 300, seed)
        net(images(2))
        seen.append(round(net.step_figures()["convolutions_computed"] * 21))
    # e: 1 or 2 convolutions; d or c behind a (two blocks) or b: from 1 + 1 to 4 + 4
    assert min(seen) == 1
    assert max(seen) <= 8


def test_the_join_of_c_and_d_drops_nothing_under_freeze_drop_path():
    net = staged(drop_path_rate=1 - 1e-9)
    computed = []
    for block in (net.c2, net.d):
        block.register_forward_hook(lambda block, *_: computed.append(block))
    for step in range(2, 10):
        at(net, step)(images(2))
    assert len(computed) == 2 * 8


def test_draws_leave_torchs_own_generator_alone_once_a_step_has_begun():
    net = small(drop_path_rate=0.5)
    net.begin_step(3, 10, seed=7)
    state = torch.get_rng_state()
    first = net(images())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(net(images()), first)


def test_which_nets_leave_gradients_out_and_what_the_training_can_ask():
    assert not small().leaves_gradients_out
    assert small(drop_path_rate=0.1).leaves_gradients_out
    assert staged().leaves_gradients_out
    assert isinstance(small(), FollowsTraining)
    assert isinstance(small(), HasFigures)
    assert small().step_figures() == {"convolutions_computed": 1.0}


@pytest.mark.parametrize("training", ["joint", "freeze_drop_path"])
def test_the_net_exports_in_evaluation(training):
    net = used(small(training=training, taylor=True)).eval()
    exported = torch.export.export(net, (images(1),)).module()
    assert torch.allclose(exported(images(1)), net(images(1)), atol=1e-5)


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training": "staged"}, r"^model\.training=staged .*joint, freeze_drop_path\.$"),
        ({"width": 0}, r"^model\.width=0 "),
        ({"columns": 0}, r"^model\.columns=0 must be from 1 to 6"),
        ({"drop_path_rate": 1.0}, r"^model\.drop_path_rate=1\.0 "),
        ({"dropout": (0.1, 0.2)}, r"^model\.dropout=\[0\.1, 0\.2\] must be seven rates"),
        ({"dropout": (0.0,) * 6 + (1.0,)}, r"^model\.dropout=1\.0 "),
        ({"freeze_schedule": "cyclic"}, r"^model\.freeze_schedule=cyclic .*stochastic, deterministic\.$"),
        ({"freeze_proportions": "cubes"}, r"^model\.freeze_proportions=cubes .*squares, equal, reversed_squares\.$"),
        ({"freeze_cycle": 0}, r"^model\.freeze_cycle=0 "),
        ({"image_size": 8}, r"^model\.image_size=8 must be at least 16"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FractalOfFractalNet(**options)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"^model\.image_size=16 does not fit images of 32x32"):
        small()(torch.rand(2, 3, 32, 32))
