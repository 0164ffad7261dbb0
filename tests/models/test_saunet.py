"""SAUNet: the released net's parameters, its gates and attention by hand, its switches, and what does not fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from convatlas.models.build import build_model
from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.layers.gated_convolution import GatedConvolution
from convatlas.models.segmentation.saunet import (
    DualAttention,
    SAUNet,
    SAUNetOutput,
    ShapeStream,
    texture_channels,
)
from helpers import ROOT

TINY: dict[str, Any] = {
    "growth_rate": 4,
    "block_config": (1, 1, 1, 1),
    "stem_width": 8,
    "decoder_width": 4,
    "shape_width": 8,
    "num_classes": 3,
    "in_channels": 2,
}


def tiny(**other: Any) -> SAUNet:
    torch.manual_seed(0)
    return SAUNet(**(TINY | other))


def pictures(side: int = 32, images: int = 2, channels: int = 2, seed: int = 1) -> Tensor:
    """Return images whose last channel is 0 or 1, as Canny's edges are."""
    drawn = torch.rand(images, channels, side, side, generator=torch.Generator().manual_seed(seed))
    return torch.cat([drawn[:, :-1], drawn[:, -1:].round()], dim=1)


# ---- parameters -----------------------------------------------------------------------------------------------------


def test_the_released_net_has_31_871_505_parameters() -> None:
    """Four classes, three channels of the image; the DenseNet's classifier is not there."""
    net = on_meta_device(SAUNet)
    assert isinstance(net, SAUNet)
    assert net.shape is not None
    encoder, shape = count_parameters(net.texture), count_parameters(net.shape)
    assert (encoder, shape) == (6_953_856, 113_197)
    assert count_parameters(net) - encoder - shape == 24_804_452
    assert count_parameters(net) == 31_871_505


def test_the_encoder_s_channels_are_those_of_densenet_121() -> None:
    assert texture_channels(32, (6, 12, 24, 16), 64) == [128, 256, 512, 1024]


@pytest.mark.parametrize("name", ["saunet", "saunet_small"])
def test_the_configurations_give_maps_as_large_as_their_images(name: str) -> None:
    config = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    net = on_meta_device(lambda: build_model(config["model"])).eval()
    output = net(torch.zeros(1, *config["about"]["input_size"], device="meta"))
    assert output.shape == (1, config["model"]["num_classes"], *config["about"]["input_size"][1:])


# ---- maps and outputs -----------------------------------------------------------------------------------------------


def test_the_texture_stream_leaves_out_the_stem_s_relu_and_pooling() -> None:
    net = on_meta_device(SAUNet)
    assert [type(layer) for layer in net.texture.stem] == [nn.Conv2d, nn.BatchNorm2d]
    maps = net.texture(torch.zeros(1, 3, 256, 256, device="meta"))
    assert [tuple(each.shape[1:]) for each in maps] == [(128, 64, 64), (256, 32, 32), (512, 16, 16), (1024, 16, 16)]


def test_in_training_the_edges_come_beside_the_logits_and_in_evaluation_the_logits_alone() -> None:
    net = tiny()
    output = net.train()(pictures())
    assert isinstance(output, SAUNetOutput)
    assert (output.logits.shape, output.edges.shape) == ((2, 3, 32, 32), (2, 1, 32, 32))
    logits = net.eval()(pictures())
    assert isinstance(logits, Tensor)
    assert torch.equal(logits, net.inspect(pictures()).logits)


def test_inspection_shows_the_attention_of_four_scales() -> None:
    attention = tiny().eval().inspect(pictures(64)).attention
    assert [tuple(maps.shape) for maps in attention] == [(2, 1, side, side) for side in (4, 8, 16, 32)]
    assert all(maps.min() >= 0 and maps.max() <= 1 for maps in attention)


@pytest.mark.parametrize("training", [True, False])
def test_every_weight_has_a_gradient(training: bool) -> None:
    net = tiny().train(training)
    inspected = net.inspect(pictures())
    assert inspected.edges is not None
    (inspected.logits.square().mean() + inspected.edges.mean()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_one_image_gives_the_same_logits_alone_and_in_a_batch() -> None:
    net = tiny().eval()
    batch = pictures(images=3)
    torch.testing.assert_close(net(batch)[1:2], net(batch[1:2]))


@pytest.mark.slow
def test_the_net_exports() -> None:
    exported = torch.export.export(tiny().eval(), (pictures(images=1),))
    torch.testing.assert_close(exported.module()(pictures(images=1)), tiny().eval()(pictures(images=1)))


# ---- gates ----------------------------------------------------------------------------------------------------------


def test_a_closed_gate_leaves_a_plain_1x1_convolution() -> None:
    torch.manual_seed(0)
    layer = GatedConvolution(6).eval()
    nn.init.zeros_(layer.gate[-2].weight)
    nn.init.constant_(layer.gate[-2].bias, -100.0)
    stream, texture = torch.randn(2, 6, 5, 5), torch.randn(2, 1, 5, 5)
    plain = torch.einsum("oi,bihw->bohw", layer.convolution.weight[:, :, 0, 0], stream)
    torch.testing.assert_close(layer(stream, texture), plain)


def test_an_open_gate_doubles_it() -> None:
    layer = GatedConvolution(6).eval()
    nn.init.zeros_(layer.gate[-2].weight)
    nn.init.constant_(layer.gate[-2].bias, 100.0)
    stream = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(layer(stream, torch.zeros(2, 1, 5, 5)), 2 * layer.convolution(stream))


def test_the_gate_looks_at_the_texture() -> None:
    torch.manual_seed(0)
    layer = GatedConvolution(6).eval()
    stream = torch.randn(1, 6, 5, 5)
    texture = torch.zeros(1, 1, 5, 5)
    texture[0, 0, 2, 3] = 10.0
    changed = (layer(stream, texture) != layer(stream, torch.zeros(1, 1, 5, 5))).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[2, 3]]


# ---- shape stream ---------------------------------------------------------------------------------------------------


def test_predicted_and_canny_edges_are_fused_as_written() -> None:
    torch.manual_seed(0)
    stream = ShapeStream((4, 5, 6, 7), width=8, edge_width=2).eval()
    maps = tuple(torch.randn(1, channels, 4, 4) for channels in (4, 5, 6, 7))
    canny = torch.rand(1, 1, 16, 16).round()
    edges, fused = stream(maps, canny)
    one, other = stream.fuse.weight.flatten()
    expected = stream.expand(torch.sigmoid(one * torch.sigmoid(edges) + other * canny))
    assert edges.shape == (1, 1, 16, 16)
    torch.testing.assert_close(fused, expected)


def test_canny_reaches_the_classes_only_through_the_shape_stream() -> None:
    one = pictures()
    other = torch.cat([one[:, :-1], 1 - one[:, -1:]], dim=1)
    whole, without = tiny().eval(), tiny(shape_stream=False).eval()
    assert not torch.equal(whole(one), whole(other))
    assert torch.equal(without(one), without(other))
    whole_edges = whole.inspect(one).edges, whole.inspect(other).edges
    assert torch.equal(*whole_edges)  # predicted from the texture alone, before the two are fused


def test_without_a_shape_stream_there_are_no_edges() -> None:
    net = tiny(shape_stream=False).train()
    assert isinstance(net(pictures()), Tensor)
    assert net.inspect(pictures()).edges is None


# ---- attention ------------------------------------------------------------------------------------------------------


def test_dual_attention_weighs_channels_and_pixels() -> None:
    """With the last weights at zero both sigmoids give their bias's value everywhere."""
    attention = DualAttention(16).eval()
    for layer, bias in ((attention.excitation[-2], 2.0), (attention.spatial[-2], -1.0)):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, bias)
    x = torch.randn(2, 16, 3, 3)
    weighed, spatial = attention(x)
    channel, pixel = torch.sigmoid(torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(spatial, pixel.expand(2, 1, 3, 3))
    torch.testing.assert_close(weighed, x * channel * (1 + pixel))


def test_without_attention_there_is_nothing_of_it() -> None:
    net = tiny(attention=False).eval()
    assert not any(isinstance(module, DualAttention) for module in net.modules())
    assert net.inspect(pictures()).attention == ()


# ---- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "words"), [
    ({"in_channels": 1}, "model.in_channels=1 must be 2 or more: .* data.in_channels"),
    ({"block_config": (2, 2, 2)}, r"model.block_config=\[2, 2, 2\] must be 4"),
    ({"block_config": (2, 2, 0, 2)}, r"model.block_config=\[2, 2, 0, 2\] must be 4"),
    ({"growth_rate": 0}, "model.growth_rate=0 must be at least 1"),
    ({"stem_width": 0}, "model.stem_width=0 must be at least 1"),
    ({"decoder_width": 6}, "model.decoder_width=6 must be a multiple of 4"),
    ({"shape_width": 4}, "model.shape_width=4 must be a multiple of 8"),
])  # fmt: skip
def test_options_that_make_no_net(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        tiny(**options)


@pytest.mark.parametrize(("size", "near"), [((48, 64), "64x64"), ((64, 100), "64x96"), ((16, 16), "32x32")])
def test_sizes_that_do_not_fit(size: tuple[int, int], near: str) -> None:
    words = re.escape(f"data.image_size={size[0]}x{size[1]}") + f" .* multiples of 32, the nearest {near}"
    with pytest.raises(ValueError, match=f"^{words}"):
        tiny()(torch.zeros(1, 2, *size))
