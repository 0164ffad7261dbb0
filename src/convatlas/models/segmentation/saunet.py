"""SAUNet: a U-shaped net with a second stream that sees shapes, and attention that can be shown.

Sun, Darbehani, Zaidi, Wang, "SAUNet: Shape Attentive U-Net for Interpretable Medical Image Segmentation" (MICCAI 2020).
Channels, biases and the order of layers follow the released code (sunjesse/shape-attentive-unet), whose parameters this
net has to the last one.

Input: the image's channels, then one more with the image's Canny edges as 0 and 1. The edges are computed when the data
are prepared (`convatlas.data.edges`); the released code computes them in the forward pass, of which no graph can be
exported.

Texture stream: DenseNet-121 without the ReLU and the pooling of its stem, so that its maps are twice as large as there.
Shape stream: at the image's full size, three residual blocks and gates that the texture stream opens; it ends in a map
of the classes' edges, which has a loss of its own. Decoder: at each of four scales channel and spatial attention.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import DenseNet

from convatlas.models.checks import require_all_positive, require_counts
from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.models.layers.gated_convolution import GatedConvolution

RELU = partial(nn.ReLU, inplace=True)
STEP = 32
"""Images are multiples of it: the texture stream halves four times, the decoder's centre once more."""


class SAUNetOutput(NamedTuple):
    """What the net gives in training."""

    logits: Tensor  # `(B, classes, H, W)`
    edges: Tensor  # `(B, 1, H, W)`, logits of a pixel lying at the edge of a class


class Inspection(NamedTuple):
    """What the net can show of an image beside its classes."""

    logits: Tensor  # `(B, classes, H, W)`
    edges: Tensor | None  # `(B, 1, H, W)`, logits of a pixel lying at the edge of a class; None without shape stream
    # spatial attention of the decoder's four blocks in (0, 1), `(B, 1, h, w)` each, the coarsest first; empty without
    # attention
    attention: tuple[Tensor, ...]


def conv_bn_relu(in_channels: int, out_channels: int) -> ConvNormAct:
    """3x3 convolution with a bias, as released, batch normalisation and ReLU."""
    return ConvNormAct(in_channels, out_channels, 3, bias=True, activation=RELU)


def up_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """4x4 transposed convolution of stride 2, batch normalisation and ReLU; `(B, C, H, W) -> (B, out, 2H, 2W)`."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate a map to `size`."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


Maps = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of the texture stream: at a quarter of the image's side, an eighth, and twice a sixteenth."""


class TextureStream(nn.Module):
    """The convolutions of a DenseNet; `relu0` and `pool0` of its stem are left out, as in the released code."""

    def __init__(self, in_channels: int, growth_rate: int, block_config: Sequence[int], stem_width: int) -> None:
        super().__init__()
        first, second, third, fourth = block_config
        net = DenseNet(growth_rate, (first, second, third, fourth), stem_width, num_classes=1)
        features = dict(net.features.named_children())
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem_width, 7, stride=2, padding=3, bias=False), features["norm0"]
        )
        nn.init.kaiming_normal_(self.stem[0].weight)  # type: ignore[arg-type]
        self.block1 = nn.Sequential(features["denseblock1"], features["transition1"])
        self.block2 = nn.Sequential(features["denseblock2"], features["transition2"])
        self.block3 = nn.Sequential(features["denseblock3"], features["transition3"])
        self.block4 = nn.Sequential(features["denseblock4"], features["norm5"])

    def forward(self, images: Tensor) -> Maps:
        """`(B, C, H, W)` to maps of sides H/4, H/8, H/16 and H/16."""
        conv2 = self.block1(self.stem(images))
        conv3 = self.block2(conv2)
        conv4 = self.block3(conv3)
        return conv2, conv3, conv4, self.block4(conv4)


def texture_channels(growth_rate: int, block_config: Sequence[int], stem_width: int) -> list[int]:
    """Return the channels of the texture stream's maps: a block adds `growth_rate` a layer, a transition halves."""
    channels = [stem_width]
    for layers in block_config[:3]:
        channels.append((channels[-1] + layers * growth_rate) // 2)
    return [*channels[1:], channels[-1] + block_config[3] * growth_rate]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity; `(B, C, H, W) -> (B, C, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = ConvNormAct(channels, channels, 3, activation=RELU)
        self.branch = nn.Sequential(*first, *ConvNormAct(channels, channels, 3, activation=None))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


class ShapeStream(nn.Module):
    """From the texture stream's maps to a map of edges, at the image's size all the way.

    Args:
        texture: channels of the texture stream's maps.
        width: channels of the first residual block; the next two have half and a quarter, the last gate an eighth.
    """

    def __init__(self, texture: Sequence[int], width: int, edge_width: int) -> None:
        super().__init__()
        widths = [width, width // 2, width // 4, width // 8]
        self.begin = nn.Conv2d(texture[0], width, 1)
        self.residual = nn.ModuleList(ResidualBlock(channels) for channels in widths[:3])
        self.narrow = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1) for channels in widths[1:])
        self.texture = nn.ModuleList(nn.Conv2d(channels, 1, 1) for channels in texture[1:])
        self.gates = nn.ModuleList(GatedConvolution(channels) for channels in widths[1:])
        self.edges = nn.Conv2d(widths[3], 1, 1, bias=False)
        self.fuse = nn.Conv2d(2, 1, 1, bias=False)
        self.expand = ConvNormAct(1, edge_width, bias=True, activation=RELU)

    def forward(self, texture: Maps, canny: Tensor) -> tuple[Tensor, Tensor]:
        """Predict edges from the texture stream's maps, and fuse them with Canny's, `(B, 1, H, W)`.

        Returns logits of the edges, `(B, 1, H, W)`, and the map for the decoder, `(B, edge_width, H, W)`.
        """
        size = canny.shape[-2:]
        stream = enlarge(self.begin(texture[0]), size)
        layers = zip(self.residual, self.narrow, self.gates, self.texture, texture[1:], strict=True)
        for residual, narrow, gate, to_one, maps in layers:
            stream = gate(narrow(residual(stream)), enlarge(to_one(maps), size))
        edges = self.edges(stream)
        fused = torch.sigmoid(self.fuse(torch.cat([torch.sigmoid(edges), canny], dim=1)))
        return edges, self.expand(fused)


class DualAttention(nn.Module):
    """Weigh the channels of a map, then its pixels: `SE(X) * (1 + S(X))`.

    SE is squeeze-and-excitation (Hu et al. 2018), S one value in (0, 1) a pixel.

    Args:
        channels: of the map, 4 or more.
        reduction: of the channels between the two convolutions of SE; at least one channel remains.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = max(1, channels // reduction)
        self.excitation = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(channels, channels // 4, 1, bias=False),
            nn.BatchNorm2d(channels // 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // 4, 1, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighed map and the spatial attention, `(B, 1, H, W)`."""
        spatial = self.spatial(x)
        return x * self.excitation(x) * (1 + spatial), spatial


class DecoderBlock(nn.Module):
    """Enlarge the coarse map, put the skip beside it, convolve, and attend."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, attention: bool) -> None:
        super().__init__()
        self.up = up_bn_relu(in_channels, in_channels)
        self.merge = conv_bn_relu(in_channels + skip_channels, out_channels)
        self.attention = DualAttention(out_channels) if attention else None

    def forward(self, coarse: Tensor, skip: Tensor) -> tuple[Tensor, Tensor | None]:
        """`(B, in, h, w)` and `(B, skip, 2h, 2w)` to `(B, out, 2h, 2w)` and the spatial attention, if there is any."""
        x = self.merge(torch.cat([skip, self.up(coarse)], dim=1))
        return (x, None) if self.attention is None else self.attention(x)


class SAUNet(nn.Module):
    """SAUNet.

    Args:
        block_config: layers of the four dense blocks; DenseNet-121 has 6, 12, 24 and 16.
        stem_width: channels of the first convolution; DenseNet-121 has 64.
        decoder_width: channels of the decoder's finest block; the others have 2, 4 and 8 times as many. The paper has
            64. The last convolutions have half of it, and the one between three quarters.
        shape_width: channels at the beginning of the shape stream; the paper has 64.
        shape_stream: whether there is a shape stream; without it the Canny channel is not used.
        attention: whether the decoder attends.
        in_channels: channels of the input, the last of which has the Canny edges.
    """

    def __init__(
        self,
        *,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        stem_width: int = 64,
        decoder_width: int = 64,
        shape_width: int = 64,
        shape_stream: bool = True,
        attention: bool = True,
        num_classes: int = 4,
        in_channels: int = 4,
    ) -> None:
        super().__init__()
        require_all_positive(growth_rate=growth_rate, stem_width=stem_width)
        _check(block_config, decoder_width, shape_width, in_channels)
        channels = texture_channels(growth_rate, block_config, stem_width)
        width, last = decoder_width, decoder_width // 2
        self.texture = TextureStream(in_channels - 1, growth_rate, block_config, stem_width)
        self.shape = ShapeStream(channels, shape_width, last) if shape_stream else None
        self.centre = conv_bn_relu(channels[3], 8 * width)
        skips = channels[::-1]
        inputs, outputs = [8 * width, 8 * width, 4 * width, 2 * width], [8 * width, 4 * width, 2 * width, width]
        self.decoder = nn.ModuleList(
            DecoderBlock(i, skip, o, attention) for i, skip, o in zip(inputs, skips, outputs, strict=True)
        )
        self.last_up = nn.Sequential(conv_bn_relu(width, 3 * width // 4), up_bn_relu(3 * width // 4, last))
        self.last = conv_bn_relu(2 * last if shape_stream else last, last)
        self.classifier = nn.Conv2d(last, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor | SAUNetOutput:
        """`(B, in_channels, H, W) -> (B, num_classes, H, W)` logits for H and W that are multiples of 32.

        The last channel of the images has Canny's edges as 0 and 1. In training with a shape stream `SAUNetOutput`.
        """
        logits, edges, _ = self.inspect(images)
        return SAUNetOutput(logits, edges) if self.training and edges is not None else logits

    def inspect(self, images: Tensor) -> Inspection:
        """Classify each pixel, and return the predicted edges and the attention as well; see `forward`."""
        height, width = images.shape[-2:]
        if height % STEP or width % STEP or not height * width:
            near = [max(STEP, round(side / STEP) * STEP) for side in (height, width)]
            raise ValueError(
                f"data.image_size={height}x{width} does not fit SAUNet; the sides that fit are multiples of {STEP}, "
                f"the nearest {near[0]}x{near[1]}."
            )
        texture = self.texture(images[:, :-1])
        x = self.centre(F.max_pool2d(texture[3], 2))
        skips = [texture[3], *(self._twice(maps) for maps in texture[2::-1])]
        attended = []
        for block, skip in zip(self.decoder, skips, strict=True):
            x, spatial = block(x, skip)
            attended.append(spatial)
        x, edges = self.last_up(x), None
        if self.shape is not None:
            edges, shape = self.shape(texture, images[:, -1:])
            x = torch.cat([x, shape], dim=1)
        return Inspection(self.classifier(self.last(x)), edges, tuple(each for each in attended if each is not None))

    @staticmethod
    def _twice(maps: Tensor) -> Tensor:
        return enlarge(maps, [2 * side for side in maps.shape[-2:]])


def _check(block_config: Sequence[int], decoder_width: int, shape_width: int, in_channels: int) -> None:
    require_counts("block_config", block_config, 4)
    for option, value, step in (("decoder_width", decoder_width, 4), ("shape_width", shape_width, 8)):
        if value < step or value % step:
            raise ValueError(f"model.{option}={value} must be a multiple of {step}: parts of the net have parts of it.")
    if in_channels < 2:
        raise ValueError(
            f"model.in_channels={in_channels} must be 2 or more: the image's channels and, last, its Canny edges. "
            "Set data.in_channels to one more than the images have."
        )
