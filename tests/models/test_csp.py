"""CSPNet: the authors' counts, the equations, both limits of gamma, the four orders of fusion, the nets beside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import densenet121, densenet201

from convatlas.models.classification.csp import csp_darknet53, csp_densenet, csp_resnet50, csp_resnext50
from convatlas.models.classification.darknet import (
    Bottleneck,
    DarknetBlock,
    StagedNet,
    darknet53,
    darknet_resnet50,
    darknet_resnext50,
)
from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.layers.conv_norm import conv_norm
from convatlas.models.layers.cross_stage_partial import (
    ChannelSplit,
    CrossStagePartial,
    TwoConvolutions,
    cross_stage_partial,
)

ALL = [csp_resnet50, csp_resnext50, csp_darknet53, darknet_resnet50, darknet_resnext50, darknet53, csp_densenet]
PARTIAL = [csp_resnet50, csp_resnext50, csp_darknet53, csp_densenet]


def counts_at_256(build: Callable[[], nn.Module]) -> tuple[int, int]:
    """Return parameters and FLOPs, two for a multiply-add, as darknet counts them."""
    net = on_meta_device(build).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 256, 256, device="meta"))
    return count_parameters(net), counter.get_total_flops()


@cache
def csp_densenet_counts(fusion: str = "partial") -> tuple[int, int]:
    return counts_at_256(lambda: csp_densenet(fusion=fusion))


def projection(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


def residual_blocks(channels: int) -> tuple[nn.Module, int]:
    return nn.Sequential(DarknetBlock(channels, channels, "leaky"), DarknetBlock(channels, channels, "leaky")), channels


def stage(gamma: float = 0.5, fusion: str = "partial", in_channels: int = 8, out_channels: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return cross_stage_partial(
        in_channels,
        out_channels,
        make_blocks=residual_blocks,
        make_transition=projection,
        gamma=gamma,
        fusion=fusion,
    ).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))


# ---- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "parameters", "bflops", "printed"), [
    (csp_resnet50, 21_607_848, 8.9673728, (21.57, 8.97)),
    (csp_resnext50, 20_557_480, 7.929233408, (20.50, 7.93)),
    (csp_darknet53, 27_642_184, 13.06730496, (27.61, 13.07)),
    (darknet_resnet50, 22_780_456, 9.741172736, (22.73, 9.74)),
    (darknet_resnext50, 22_252_328, 10.110271488, (22.19, 10.11)),
    (darknet53, 41_609_928, 18.570231808, (41.57, 18.57)),
])  # fmt: skip
def test_counts_are_those_of_the_authors_files(
    build: Callable[[], StagedNet], parameters: int, bflops: float, printed: tuple[float, float]
) -> None:
    """The printed parameters leave batch normalisation out, which is less than 0.3 %."""
    counted = counts_at_256(build)
    assert counted == (parameters, round(bflops * 1e9))
    assert counted[0] / 1e6 == pytest.approx(printed[0], rel=0.003)
    assert counted[1] / 1e9 == pytest.approx(printed[1], rel=0.003)


@pytest.mark.parametrize("build", [csp_resnet50, csp_resnext50, csp_darknet53])
def test_printed_parameters_are_those_of_convolutions_and_the_linear_layer(build: Callable[[], StagedNet]) -> None:
    net = on_meta_device(build)
    norms = sum(p.numel() for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    printed = {csp_resnet50: 21.57, csp_resnext50: 20.50, csp_darknet53: 27.61}[build]
    assert round((count_parameters(net) - norms) / 1e6, 2) == pytest.approx(printed, abs=0.011)


@pytest.mark.parametrize(("name", "build", "difference"), [
    ("cspresnet50", csp_resnet50, 64 * 64 + 64 * 64 + 2 * 64),
    ("cspresnext50", csp_resnext50, 64 * 64 + 64 * 128 + 2 * 64),
    ("cspdarknet53", csp_darknet53, 0),
])  # fmt: skip
def test_timm_differs_in_the_first_stage_alone(name: str, build: Callable[[], StagedNet], difference: int) -> None:
    """timm lets the first stage's blocks begin with 128 channels: a wider entry, and a wider first convolution."""
    import timm

    theirs = on_meta_device(lambda: timm.create_model(name))
    assert count_parameters(theirs) - count_parameters(on_meta_device(build)) == difference


def test_without_fusion_it_is_densenet() -> None:
    assert csp_densenet_counts("none") == counts_at_256(densenet121) == (7_978_856, 7_402_897_408)
    deeper = on_meta_device(lambda: csp_densenet(layers=(6, 12, 48, 32), fusion="none"))
    assert count_parameters(deeper) == count_parameters(on_meta_device(densenet201)) == 20_013_928


def test_csp_densenet_costs_less_than_densenet_121() -> None:
    parameters, flops = csp_densenet_counts()
    assert (parameters, flops) == (6_979_368, 6_915_334_144)
    assert 1 - flops / csp_densenet_counts("none")[1] == pytest.approx(0.066, abs=0.001)


# ---- structure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "channels", "strides"), [
    (csp_resnet50, (128, 256, 512, 1024), (4, 8, 16, 32)),
    (csp_resnext50, (256, 512, 1024, 2048), (4, 8, 16, 32)),
    (csp_darknet53, (64, 128, 256, 512, 1024), (2, 4, 8, 16, 32)),
    (csp_densenet, (128, 256, 512, 512), (4, 8, 16, 32)),
    (darknet53, (64, 128, 256, 512, 1024), (2, 4, 8, 16, 32)),
])  # fmt: skip
def test_every_stage_s_map(build: Callable[[], StagedNet], channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    net = on_meta_device(build)
    maps = net.forward_pyramid(torch.zeros(1, 3, 64, 96, device="meta"))
    assert [tuple(m.shape[1:]) for m in maps] == [(c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]
    assert (net.stage_channels, net.stage_strides) == (channels, strides)


def activations_of_splits(net: StagedNet) -> list[bool]:
    return [len(m.bypass) == 3 for m in net.modules() if isinstance(m, TwoConvolutions)]


@pytest.mark.parametrize("build", [csp_resnet50, csp_resnext50])
def test_special_cases_of_the_released_files(build: Callable[[], StagedNet]) -> None:
    """The first stage's blocks begin with 64 channels; the splits of the two middle stages are linear."""
    net = on_meta_device(build)
    first = next(m for m in net.modules() if isinstance(m, CrossStagePartial))
    assert first.split.bypass[0].out_channels == 128
    assert first.split.base[0].out_channels == 64
    assert activations_of_splits(net) == [True, False, False, True]


def test_a_sum_of_64_and_128_channels_adds_the_channels_that_both_have() -> None:
    torch.manual_seed(0)
    block = Bottleneck(2, 2, 4, activation="leaky").eval()
    x = torch.randn(1, 2, 3, 3)
    both = block.residual(x).clone()
    both[:, :2] += x
    assert torch.equal(block(x), F.leaky_relu(both, 0.1))


def test_darknet_s_sum_is_not_activated() -> None:
    block = DarknetBlock(3, 2, "leaky").eval()
    x = -torch.ones(1, 3, 2, 2)
    nn.init.zeros_(block.residual[1][1].weight)
    assert torch.equal(block(x), x)


def test_mish_takes_the_place_of_every_leaky_relu() -> None:
    net = on_meta_device(lambda: csp_resnet50(activation="mish"))
    leaky = sum(isinstance(m, nn.LeakyReLU) for m in on_meta_device(csp_resnet50).modules())
    assert sum(isinstance(m, nn.Mish) for m in net.modules()) == leaky
    assert not any(isinstance(m, nn.LeakyReLU) for m in net.modules())


def test_two_convolutions_are_one_wide_convolution_and_a_split() -> None:
    torch.manual_seed(0)
    two = TwoConvolutions(5, 3, 4, "leaky").eval()
    wide = conv_norm(5, 7, 1).eval()
    wide[0].weight.data = torch.cat([two.bypass[0].weight, two.base[0].weight]).detach()
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(torch.cat(two(x), 1), wide(x))


# ---- the cross-stage partial connection -----------------------------------------------------------------------------


def test_a_stage_computes_equations_3_and_4(x: Tensor) -> None:
    net = stage()
    around, through = x[:, :4], x[:, 4:]
    after = F.conv2d(net.blocks(through), net.transition.weight)
    expected = F.conv2d(torch.cat([after, around], 1), net.fusion.weight)
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("build", PARTIAL)
def test_with_the_block_path_at_zero_the_bypass_alone_carries_values_and_gradients(
    build: Callable[..., StagedNet],
) -> None:
    torch.manual_seed(0)
    small = {
        csp_densenet: {"layers": (2, 2), "growth_rate": 4, "stem": "small"},
        csp_darknet53: {"blocks": (1, 1), "channels": (8, 16)},
    }
    other = {"blocks": (1, 1), "channels": (32, 64), "stem": "small", "stem_channels": 16}
    net = build(**small.get(build, other), num_classes=3).eval()
    stages = [m for m in net.modules() if isinstance(m, CrossStagePartial)]
    for each in stages:
        convolution = next(m for m in each.transition.modules() if isinstance(m, nn.Conv2d))
        nn.init.zeros_(convolution.weight)
    out = net(torch.rand(2, 3, 16, 16))
    assert out.abs().max() > 0
    out.square().sum().backward()
    assert len(stages) == 2
    for each in stages:
        in_blocks = [p.grad for p in each.blocks.parameters()]
        assert all(grad.abs().max() == 0 for grad in in_blocks)
        assert next(each.fusion.parameters()).grad.abs().max() > 0
    first = next(m for m in net.stem.modules() if isinstance(m, nn.Conv2d))
    assert first.weight.grad.abs().max() > 0


@pytest.mark.parametrize("fusion", ["partial", "first"])
def test_gamma_1_leaves_the_bypass_and_its_transition(fusion: str, x: Tensor) -> None:
    net = stage(gamma=1.0, fusion=fusion)
    assert not any(isinstance(m, DarknetBlock) for m in net.modules())
    torch.testing.assert_close(net(x), F.conv2d(x, net.fusion.weight))


def test_gamma_0_is_the_plain_stage_with_transitions(x: Tensor) -> None:
    net, plain = stage(gamma=0.0), stage(fusion="none")
    plain.load_state_dict(
        {f"0.{k}": v for k, v in net.blocks.state_dict().items()} | {"1.weight": net.transition.weight}
    )
    torch.testing.assert_close(net(x), F.conv2d(plain(x), net.fusion.weight))


def test_fusion_first_has_no_transition_before_the_concatenation(x: Tensor) -> None:
    net = stage(fusion="first")
    expected = F.conv2d(torch.cat([net.blocks(x[:, 4:]), x[:, :4]], 1), net.fusion.weight)
    torch.testing.assert_close(net(x), expected)
    assert net(x).shape[1] == 12


def test_fusion_last_has_no_transition_behind_it_and_leaves_the_bypass_untouched(x: Tensor) -> None:
    net = stage(fusion="last")
    out = net(x)
    torch.testing.assert_close(out[:, :8], F.conv2d(net.blocks(x[:, 4:]), net.transition.weight))
    assert torch.equal(out[:, 8:], x[:, :4])
    assert out.shape[1] == 12


@pytest.mark.parametrize(("gamma", "bypass"), [(0.25, 2), (0.5, 4), (0.75, 6)])
def test_gamma_is_the_share_that_goes_around(gamma: float, bypass: int) -> None:
    split = stage(gamma=gamma).split
    assert isinstance(split, ChannelSplit)
    assert split.sizes == [bypass, 8 - bypass]


@pytest.mark.parametrize(("fusion", "other"), [("first", "partial"), ("last", "first"), ("partial", "none")])
def test_the_orders_differ_in_cost(fusion: str, other: str) -> None:
    """Each transition that is left out saves; the one behind the concatenation is the larger one."""
    assert csp_densenet_counts(fusion)[1] < csp_densenet_counts(other)[1]


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "options", "words"), [
    (csp_densenet, {"gamma": 1.5}, r"model\.gamma=1\.5 is a share"),
    (csp_densenet, {"gamma": 1.0, "fusion": "last"}, r"model\.gamma=1\.0 sends 64 of 64 .*model\.fusion=first"),
    (csp_densenet, {"fusion": "middle"}, r"model\.fusion=middle .*partial, first, last, none"),
    (csp_densenet, {"layers": ()}, r"model\.layers=\[\]"),
    (csp_densenet, {"compression": 0}, r"model\.compression=0 "),
    (csp_densenet, {"growth_rate": 0}, r"model\.growth_rate=0 "),
    (csp_densenet, {"stem": "tiny"}, r"model\.stem=tiny .*large, small"),
    (csp_resnet50, {"blocks": (3, 3)}, r"model\.blocks=\[3, 3\] names 2 stages and model\.channels=.* 4"),
    (csp_resnet50, {"blocks": (3, 3, 0, 2)}, r"model\.blocks=.* at least 1"),
    (csp_resnet50, {"channels": (127, 256, 512, 1024)}, r"model\.channels=\[127, .* multiples of 2"),
    (csp_resnet50, {"stem_channels": 256}, r"model\.stem_channels=256 is more than .* 128"),
    (csp_resnet50, {"activation": "relu"}, r"model\.activation=relu .*leaky, mish"),
    (csp_resnext50, {"groups": 48}, r"model\.channels=.* multiples of 48"),
    (csp_resnext50, {"groups": 0}, r"model\.groups=0 "),
    (darknet_resnet50, {"channels": (256, 128, 512, 1024)}, r"model\.channels=.* nor fall"),
    (darknet_resnext50, {"channels": (256, 512, 1024, 2000)}, r"multiples of 64"),
    (darknet53, {"stem_channels": 0}, r"model\.stem_channels=0 "),
])  # fmt: skip
def test_options_that_make_no_net(build: Callable[..., nn.Module], options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        on_meta_device(lambda: build(**options))


def test_csp_densenet_tells_the_smallest_image() -> None:
    net = on_meta_device(csp_densenet).eval()
    assert net(torch.zeros(1, 3, 29, 29, device="meta")).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"from 29x29 pixels; these have 28x40"):
        net(torch.zeros(1, 3, 28, 40, device="meta"))


@pytest.mark.parametrize("build", [f for f in ALL if f is not csp_densenet])
def test_the_others_take_a_single_pixel(build: Callable[[], StagedNet]) -> None:
    net = on_meta_device(build).eval()
    assert net(torch.zeros(1, 3, 1, 1, device="meta")).shape == (1, 1000)
