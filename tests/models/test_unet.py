"""U-Net: the paper's parameters and sizes, the padded form, and the sizes that do not fit."""

from __future__ import annotations

import pytest
import torch

from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.layers.crop import centre_crop
from convatlas.models.segmentation.unet import UNet


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel**2 + outputs


def test_the_paper_s_net_has_31_030_658_parameters() -> None:
    """One input channel, two classes, biases, no normalisation."""
    assert count_parameters(on_meta_device(UNet)) == 31_030_658


def test_parameters_follow_the_paper_s_list_of_layers() -> None:
    down = [(1, 64), (64, 128), (128, 256), (256, 512), (512, 1024)]
    up = [(1024, 512), (512, 256), (256, 128), (128, 64)]
    expected = sum(conv(a, b, 3) + conv(b, b, 3) for a, b in down)
    expected += sum(conv(a, b, 2) + conv(a, b, 3) + conv(b, b, 3) for a, b in up)
    assert count_parameters(on_meta_device(UNet)) == expected + conv(64, 2, 1)


def test_batch_norm_trades_each_bias_for_a_gain_and_a_shift() -> None:
    plain = on_meta_device(lambda: UNet(base_width=8))
    normalised = on_meta_device(lambda: UNet(base_width=8, batch_norm=True))
    filters = 2 * (8 + 16 + 32 + 64 + 128) + 2 * (64 + 32 + 16 + 8)
    assert count_parameters(normalised) - count_parameters(plain) == filters


@pytest.mark.parametrize(("options", "size", "output"), [
    ({}, (572, 572), (388, 388)),
    ({}, (188, 204), (4, 20)),
    ({"depth": 2}, (44, 48), (4, 8)),
    ({"padded": True}, (96, 64), (96, 64)),
    ({"padded": True, "depth": 1}, (6, 2), (6, 2)),
])  # fmt: skip
def test_sizes(options: dict[str, int], size: tuple[int, int], output: tuple[int, int]) -> None:
    net = on_meta_device(lambda: UNet(base_width=2, num_classes=3, in_channels=2, **options))
    assert net(torch.zeros(1, 2, *size, device="meta")).shape == (1, 3, *output)
    assert size[0] - output[0] == 2 * net.margin


@pytest.mark.parametrize(("options", "size", "words"), [
    ({}, (570, 572), "570x572 .* steps of 16, the nearest 572x572"),
    ({}, (172, 188), "172x188 .* are 188, 204, 220 .* nearest 188x188"),
    ({"padded": True}, (96, 90), "96x90 .* multiples of 16, the nearest 96x96"),
    ({"padded": True, "depth": 3}, (4, 64), "4x64 .* multiples of 8, the nearest 8x64"),
])  # fmt: skip
def test_sizes_that_do_not_fit(options: dict[str, int], size: tuple[int, int], words: str) -> None:
    net = on_meta_device(lambda: UNet(base_width=1, **options))
    with pytest.raises(ValueError, match=f"^data.image_size={words}"):
        net(torch.zeros(1, 1, *size, device="meta"))


@pytest.mark.parametrize(
    ("options", "word"), [({"depth": 0}, "model.depth=0"), ({"base_width": 0}, "model.base_width=0")]
)
def test_options_that_make_no_net(options: dict[str, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        UNet(**options)


def test_the_output_lies_over_the_middle_of_the_input() -> None:
    """With weights that have no direction, a symmetric picture gives a symmetric map: crops are centred."""
    net = UNet(base_width=2, depth=2, dropout=0.0).eval()
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.05)
    picture = torch.rand(1, 1, 60, 60, generator=torch.Generator().manual_seed(0))
    picture = picture + picture.flip(2) + picture.flip(3) + picture.flip(2, 3)
    output = net(picture)
    assert output.std() > 0
    torch.testing.assert_close(output, output.flip(2))
    torch.testing.assert_close(output, output.flip(3))


def test_skips_carry_what_the_lowest_level_does_not() -> None:
    """With the lowest up-convolution silenced, the output still depends on the input, by the copies alone."""
    torch.manual_seed(0)
    net = UNet(base_width=4, depth=2, padded=True, dropout=0.0).eval()
    for up in net.up:
        torch.nn.init.zeros_(up.weight)
        torch.nn.init.zeros_(up.bias)
    one, other = torch.randn(2, 1, 1, 16, 16)
    assert not torch.equal(net(one), net(other))
    deep = list(net.down[-1].parameters())
    net(one).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in deep)


def test_dropout_works_behind_the_two_lowest_levels_alone() -> None:
    net = UNet(base_width=4, depth=3, padded=True, dropout=0.5).train()
    dropped: list[int] = []
    net.dropout.register_forward_hook(lambda _module, inputs, _output: dropped.append(inputs[0].shape[1]))
    net(torch.zeros(1, 1, 16, 16))
    assert dropped == [16, 32]


def test_the_first_weights_keep_the_variance_that_the_paper_asks_for() -> None:
    torch.manual_seed(0)
    net = UNet(base_width=32, depth=2)
    for module in (net.down[2].layers[2], net.merge[0].layers[0]):
        assert module.weight.std().item() == pytest.approx((2 / (9 * module.in_channels)) ** 0.5, rel=0.02)
    assert net.up[0].weight.std().item() == pytest.approx((2 / net.up[0].in_channels) ** 0.5, rel=0.02)


def test_centre_crop_takes_the_middle() -> None:
    x = torch.arange(7).expand(5, 7)
    assert centre_crop(x, (3, 3)).tolist() == [[2, 3, 4]] * 3
    assert centre_crop(torch.arange(6).expand(5, 6), (5, 3))[0].tolist() == [1, 2, 3]
