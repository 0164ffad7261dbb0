"""FractalNet: the expansion rule, its columns as plain nets, and what drop-path computes."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convatlas.models.classification.fractalnet import FractalNet
from convatlas.models.costs import count_parameters, measure_costs, on_meta_device
from convatlas.models.interfaces import FollowsTraining, HasFigures, HasParts
from convatlas.models.layers.fractal import FractalBlock, FractalConv, LocalDropPath, draw_survivors, join

NARROW = (16, 32, 64, 128, 128)
TINY = (4, 6)


def used(net):
    """Give every normalisation statistics and every convolution a bias, as after a training."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    return net


def tiny(**options):
    torch.manual_seed(0)
    return FractalNet(**{"columns": 3, "widths": TINY, **options})


def convolutions(net):
    return {name: module for name, module in net.named_modules() if isinstance(module, FractalConv)}


# ---- size -----------------------------------------------------------------------------------------------------------


def test_the_net_of_20_layers_has_the_size_of_the_authors_generator():
    net = on_meta_device(FractalNet).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, 32, 32, device="meta"))
    assert count_parameters(net) == 33_714_314
    assert counter.get_total_flops() == 2 * 845_222_912


@pytest.mark.parametrize(
    ("columns", "parameters", "reimplemented"),
    [
        (1, 257_924, 258_292),
        (2, 846_612, 847_716),
        (3, 2_122_628, 2_125_204),
        (4, 4_773_300, 4_778_820),
        (5, 10_173_284, 10_184_692),
        (6, 21_071_892, 21_095_076),
    ],
)
def test_the_papers_series_of_depths(columns, parameters, reimplemented):
    """The paper prints 0.3, 0.8, 2.1, 4.8, 10.2 and 21.1 million for 100 classes, which both conventions round to."""
    for affine, count in ((False, parameters), (True, reimplemented)):
        net = on_meta_device(lambda: FractalNet(columns=columns, widths=NARROW, num_classes=100, affine=affine))  # noqa: B023
        assert count_parameters(net) == count


def test_the_convention_of_the_reimplementations_at_20_layers():
    assert count_parameters(on_meta_device(lambda: FractalNet(affine=True))) == 33_724_618


def test_fractalnet_34_has_34_layers_on_its_longest_path_and_averages_7x7():
    net = on_meta_device(lambda: FractalNet(columns=4, widths=(64, 128, 256, 512), stem="imagenet", num_classes=1000))
    deepest = [m for m in net.deepest_column().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(deepest) == 34
    assert net.eval().forward_features(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 512, 7, 7)


def test_weights_start_as_caffes_xavier_filler_has_them():
    net = FractalNet(widths=(8, 32), columns=2)
    convolution = net.blocks[1].columns[0][0].conv
    limit = (3 / (8 * 9)) ** 0.5
    assert 0.98 * limit < convolution.weight.abs().max() <= limit
    assert convolution.bias.abs().max() == 0


# ---- the expansion rule ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "inputs"), [(1, []), (2, [2]), (3, [2, 3]), (4, [2, 3, 2, 4]), (5, [2, 3, 2, 4, 2, 3, 2, 5])]
)
def test_joins_by_the_number_of_columns(columns, inputs):
    joins = FractalBlock(1, 1, columns).joins()
    assert [len(joins[row]) for row in sorted(joins)] == inputs
    for together in joins.values():
        assert together == tuple(range(columns - len(together) + 1, columns + 1)), "always the deepest"


def test_the_net_of_three_columns_and_five_blocks_has_ten_joins():
    assert sum(len(block.joins()) for block in on_meta_device(FractalNet).blocks) == 10


def test_a_block_of_three_columns_is_the_one_that_the_paper_draws():
    torch.manual_seed(0)
    block = used(FractalBlock(2, 3, 3, pools=2)).eval()
    shallow, middle, deep = block.columns
    x = torch.randn(2, 2, 8, 8)
    joined = (middle[0](x) + deep[1](deep[0](x))) / 2
    pooled = [nn.functional.max_pool2d(y, 4) for y in (shallow[0](x), middle[1](joined), deep[3](deep[2](joined)))]
    assert torch.allclose(block(x), (pooled[0] + pooled[1] + pooled[2]) / 3, atol=1e-6)


def test_each_column_is_pooled_by_itself_before_the_join():
    torch.manual_seed(0)
    block = used(FractalBlock(2, 3, 2, pools=1)).eval()
    x = torch.randn(2, 2, 8, 8)
    before = block(x)
    block.pools = 0
    after = nn.functional.max_pool2d(block(x), 2)
    assert (after <= before + 1e-6).all()
    assert (after < before - 1e-3).any()


def test_a_convolution_drops_out_before_it_normalises_and_shifts_before_or_in_normalisation():
    kinds = [type(m) for m in FractalConv(2, 3, 0.1).chain(alone=False)]
    assert kinds == [nn.Conv2d, nn.Dropout, nn.BatchNorm2d, nn.ReLU]
    plain, affine = FractalConv(2, 3), FractalConv(2, 3, affine=True)
    assert [name for name, _ in plain.named_parameters()] == ["conv.weight", "conv.bias"]
    assert [name for name, _ in affine.named_parameters()] == ["conv.weight", "norm.weight", "norm.bias"]


def test_dropout_grows_from_block_to_block():
    net = on_meta_device(lambda: FractalNet(dropout=0.4))
    rates = [{m.p for m in block.modules() if isinstance(m, nn.Dropout)} for block in net.blocks]
    assert [pytest.approx(sorted(rate)) for rate in rates] == [[0], [0.1], [0.2], [0.3], [0.4]]
    single = FractalNet(widths=(4,), dropout=0.4)
    assert {m.p for m in single.modules() if isinstance(m, nn.Dropout)} == {0}


# ---- the nets inside the net ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_column_is_a_plain_net(number):
    """A chain of 2^(k-1) * 5 convolutions and 5 poolings, built by hand, with copied weights."""
    torch.manual_seed(0)
    net = used(FractalNet(widths=(4, 4, 6, 6, 6))).eval()
    chain, channels = [], 3
    for block, width in zip(net.blocks, (4, 4, 6, 6, 6), strict=True):
        for theirs in block.columns[number - 1]:
            convolution, norm = nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width, affine=False)
            convolution.load_state_dict(theirs.conv.state_dict())
            norm.load_state_dict(theirs.norm.state_dict())
            chain += [convolution, norm, nn.ReLU()]
            channels = width
        chain.append(nn.MaxPool2d(2))
    head = nn.Linear(6, 10)
    head.load_state_dict(net.classifier.state_dict())
    plain = nn.Sequential(*chain, nn.Flatten(), head).eval()
    assert sum(isinstance(m, nn.Conv2d) for m in plain) == 5 * 2 ** (number - 1)

    images = torch.randn(2, 3, 32, 32)
    expected = plain(images)
    assert torch.equal(net.column(number)(images), expected)
    features = images
    for block in net.blocks:
        features = block(features, block.one_column(number))
    assert torch.allclose(net.classifier(features.flatten(1)), expected, atol=1e-6)
    assert not torch.allclose(net(images), expected, atol=1e-3)


def test_a_column_shares_the_weights_and_a_copy_of_it_does_not(tmp_path):
    net = used(tiny()).eval()
    column, images = net.deepest_column(), torch.randn(2, 3, 8, 8)
    alone = copy.deepcopy(column)
    before = column(images)
    save_file(column.state_dict(), tmp_path / "column.safetensors")
    with torch.no_grad():
        net.classifier.bias += 1
    assert torch.allclose(column(images), before + 1)
    assert torch.equal(alone(images), before)
    column.load_state_dict(load_file(tmp_path / "column.safetensors"))
    assert torch.equal(column(images), before)


def test_a_column_exports_and_costs_what_its_chain_does():
    net = tiny().eval()
    column = net.column(2)
    images = torch.randn(1, 3, 8, 8)
    assert torch.allclose(torch.export.export(column, (images,)).module()(images), column(images))
    # 8 x 8: 3 -> 4 and 4 -> 4 channels; 4 x 4: 4 -> 6 and 6 -> 6; and 6 -> 10 classes
    assert measure_costs(column, (3, 8, 8)).macs == 9 * (64 * (3 * 4 + 4 * 4) + 16 * (4 * 6 + 6 * 6)) + 6 * 10


def test_the_parts_are_the_columns_in_the_nets_own_mode():
    net = tiny().eval()
    parts = net.parts()
    assert isinstance(net, HasParts)
    assert list(parts) == ["column_1", "column_2", "column_3"]
    assert not any(module.training for part in parts.values() for module in part.modules())
    assert parts["column_3"][0] is net.blocks[0].columns[2][0].conv
    assert all(module.training for module in tiny().column(1).modules())


# ---- drop-path: what is drawn ---------------------------------------------------------------------------------------


def within(count, draws, probability):
    """Four standard deviations of the binomial distribution."""
    return abs(count - draws * probability) < 4 * (draws * probability * (1 - probability)) ** 0.5


def test_at_a_rate_near_one_exactly_one_input_survives_each_as_often():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_survivors(3, 1 - 1e-9, generator) for _ in range(3000)]
    assert {len(survivors) for survivors in drawn} == {1}
    assert all(within(drawn.count([i]), 3000, 1 / 3) for i in range(3))


def test_inputs_are_dropped_at_the_rate_unless_all_would_be():
    generator = torch.Generator().manual_seed(0)
    rate, draws = 0.4, 4000
    drawn = [draw_survivors(2, rate, generator) for _ in range(draws)]
    assert all(within(sum(i in survivors for survivors in drawn), draws, 1 - rate + rate**2 / 2) for i in range(2))
    assert within(drawn.count([0, 1]), draws, (1 - rate) ** 2)


def test_at_rate_zero_a_training_join_is_the_mean():
    images = torch.randn(4, 3, 8, 8)
    expected = tiny(drop_path="none")(images)
    assert torch.equal(tiny(drop_path="local", drop_path_rate=0.0)(images), expected)
    inputs = [torch.randn(2, 3) for _ in range(3)]
    assert torch.allclose(join(inputs), torch.stack(inputs).mean(0))
    assert join(inputs[:1]) is inputs[0]


def test_global_drop_path_keeps_one_column_of_the_whole_net_each_as_often():
    net = tiny(drop_path="global")
    drawn = []
    for seed in range(600):
        net.begin_step(0, 1, seed)
        paths = net.draw_paths()
        columns = {column for kept in paths.kept for survivors in kept.values() for column in survivors}
        assert columns == {paths.column}
        drawn.append(paths.column)
        for block, kept in zip(net.blocks, paths.kept, strict=True):
            rows = {row for row, _ in block.convolutions_behind(kept)}
            assert all(len(kept[row]) == 1 for row in rows), "one survivor at every join that is used"
            assert len(rows) == 2 ** (drawn[-1] - 1)
    assert all(within(drawn.count(column), 600, 1 / 3) for column in (1, 2, 3))


def test_mixed_drop_path_is_local_and_global_in_turn_by_chance():
    net = tiny(drop_path="mixed", drop_path_rate=0.0)  # so that local is recognised by keeping all
    whole = [block.everything() for block in net.blocks]
    drawn = []
    for seed in range(600):
        net.begin_step(0, 1, seed)
        drawn.append(net.draw_paths())
    local = [paths for paths in drawn if paths.column is None]
    assert within(len(local), 600, 0.5)
    assert all(paths.kept == whole for paths in local)


def test_draws_follow_the_seed_of_the_batch_and_nothing_else():
    net, images = tiny(drop_path="mixed", drop_path_rate=0.5), torch.randn(4, 3, 8, 8)

    def draws(seeds, disturb):
        found = []
        for step, seed in enumerate(seeds):
            net.begin_step(step, 100, seed)
            if disturb:
                torch.rand(step + 1)
                net(images)
            found.append(net.draw_paths())
        return found

    state = torch.get_rng_state()
    first = draws(range(20), disturb=False)
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is left alone"
    assert draws(range(20), disturb=True) == first
    assert draws(range(20, 40), disturb=False) != first


def test_without_a_seed_torchs_own_generator_draws():
    net = tiny(drop_path="local", drop_path_rate=0.5)
    torch.manual_seed(1)
    first = [net.draw_paths() for _ in range(10)]
    torch.manual_seed(1)
    assert [net.draw_paths() for _ in range(10)] == first
    assert any(paths != first[0] for paths in first)


def test_separate_statistics_are_gathered_by_whole_batches_and_by_single_columns():
    net, images = tiny(drop_path="mixed", statistics="separate"), torch.randn(4, 3, 8, 8)
    shared = tiny(drop_path="mixed")
    assert count_parameters(net) == count_parameters(shared)
    for seed in range(20):
        net.begin_step(seed, 20, seed)
        shared.begin_step(seed, 20, seed)
        before = {name: int(m.norm.num_batches_tracked) for name, m in convolutions(net).items()}
        alone_before = {name: int(m.norm_alone.num_batches_tracked) for name, m in convolutions(net).items()}
        assert torch.equal(net(images), shared(images)), "training is the same"
        column = net.draw_paths().column
        for name, m in convolutions(net).items():
            mine = column is not None and f".columns.{column - 1}." in name
            assert int(m.norm_alone.num_batches_tracked) == alone_before[name] + mine
            assert column is None or int(m.norm.num_batches_tracked) == before[name]
    norms = [m for m in net.column(2) if isinstance(m, nn.BatchNorm2d)]
    assert norms[0] is net.blocks[0].columns[1][0].norm_alone
    assert not any("norm_alone" in name for name in tiny(drop_path="local", statistics="separate").state_dict())


def test_evaluation_drops_nothing():
    net = used(tiny(drop_path="mixed", drop_path_rate=0.9)).eval()
    whole = used(tiny()).eval()
    whole.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(net(images), whole(images))


# ---- drop-path: what is computed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local", "global", "mixed"])
def test_only_what_the_output_uses_is_computed_and_exactly_that_gets_a_gradient(kind):
    net, images = tiny(drop_path=kind, drop_path_rate=0.5), torch.randn(4, 3, 8, 8)
    every = convolutions(net)
    calls = []
    for name, module in every.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    shares = set()
    for seed in range(12):
        calls.clear()
        net.zero_grad()
        net.begin_step(seed, 12, seed)
        net(images).sum().backward()
        assert len(set(calls)) == len(calls), "nothing is computed twice"
        assert set(calls) == {name for name, module in every.items() if module.conv.weight.grad is not None}
        shares.add(net.step_figures()["convolutions_computed"])
        assert net.step_figures() == {"convolutions_computed": len(calls) / len(every)}
    assert min(shares) < 1
    assert len(shares) > 1


def test_a_join_that_nothing_uses_is_not_computed_in_local_mode():
    block = FractalBlock(2, 2, 3)
    kept = {**block.everything(), 4: (1,)}  # the last join takes the shallowest column alone
    assert block.convolutions_behind(kept) == [(4, 1)]
    kept = {**block.everything(), 2: (3,), 4: (2,)}  # the second column, over what the deepest made halfway
    assert block.convolutions_behind(kept) == [(1, 3), (2, 3), (4, 2)]


def test_local_drop_path_of_any_wiring_counts_what_it_computes():
    torch.manual_seed(0)
    block, x = FractalBlock(2, 2, 3), torch.randn(2, 2, 4, 4)
    without = LocalDropPath(0.0, seed=None)
    assert torch.equal(without.run(block, x), block(x))
    assert (without.computed, without.survivors(3)) == (7, [0, 1, 2])
    paths = LocalDropPath(1 - 1e-9, seed=0)
    assert len(paths.survivors(5)) == 1
    paths.run(block, x)
    assert paths.computed in {1, 2, 3, 4}


def test_which_nets_leave_gradients_out():
    assert not tiny(drop_path="none").leaves_gradients_out
    assert not tiny(drop_path="local", drop_path_rate=0.0).leaves_gradients_out
    assert not tiny(drop_path="global", columns=1).leaves_gradients_out
    assert all(tiny(drop_path=kind).leaves_gradients_out for kind in ("local", "global", "mixed"))


def test_the_training_can_ask_and_tell_the_net():
    net = tiny(drop_path="global")
    assert isinstance(net, FollowsTraining)
    assert isinstance(net, HasFigures)
    assert net.step_figures() == {"convolutions_computed": 1.0}


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": 0}, r"^model\.columns=0 must be from 1 to 6"),
        ({"columns": 7}, r"^model\.columns=7 must be from 1 to 6"),
        ({"widths": ()}, r"^model\.widths=\[\] must have at least one"),
        ({"widths": (8, 0)}, r"^model\.widths=0 must be at least 1"),
        ({"drop_path": "both"}, r"^model\.drop_path=both .*none, local, global, mixed\.$"),
        ({"drop_path_rate": 1.0}, r"^model\.drop_path_rate=1\.0 "),
        ({"drop_path_rate": -0.1}, r"^model\.drop_path_rate=-0\.1 "),
        ({"dropout": 1.0}, r"^model\.dropout=1\.0 "),
        ({"statistics": "own"}, r"^model\.statistics=own .*shared, separate\.$"),
        ({"statistics": "separate", "affine": True}, r"^model\.statistics=separate needs model\.affine=false"),
        ({"stem": "cifar"}, r"^model\.stem=cifar .*none, imagenet\.$"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FractalNet(**options)


def test_images_that_cannot_be_halved_so_often_are_refused():
    with pytest.raises(ValueError, match=r"from 4x4 pixels"):
        tiny()(torch.rand(2, 3, 3, 8))
    assert tiny()(torch.rand(2, 3, 4, 9)).shape == (2, 10)


@pytest.mark.parametrize("number", [0, 4])
def test_a_column_that_is_not_there_is_refused(number):
    with pytest.raises(ValueError, match=rf"^column={number}: .*1 to 3\.$"):
        tiny().column(number)
