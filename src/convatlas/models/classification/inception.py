"""The later Inception nets and Xception: torchvision's and timm's, in the papers' form and in narrow ones.

- Inception-v3: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision"
  (CVPR 2016).
- Inception-ResNet-v2: Szegedy, Ioffe, Vanhoucke, Alemi, "Inception-v4, Inception-ResNet and the Impact of Residual
  Connections on Learning" (AAAI 2017).
- Xception: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions" (CVPR 2017).

The libraries have each net at one width and for large images. Here `stem="small"` takes strides and poolings out of
the stem, and `width` makes every layer narrower by the same factor; both leave the structure as it is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.models.adapters import timm_model, torchvision_model
from convatlas.models.checks import require_choice, require_image_size, require_probability
from convatlas.models.interfaces import AuxiliaryOutput

STEMS = ("imagenet", "small")


class LibraryNet(nn.Module):
    """A library's net at some width, behind a check of the images' size.

    Args:
        build: makes the net.
        stem: `imagenet`, or `small`, which takes strides and poolings out of the stem.
        width: factor on the channels of every layer.
        smallest: side in pixels of the smallest images, for each of the two stems.
    """

    def __init__(self, build: Callable[[], nn.Module], stem: str, width: float, smallest: tuple[int, int]) -> None:
        super().__init__()
        require_choice("stem", stem, STEMS)
        self.net = at_width(build, width)
        self.smallest_image = smallest[STEMS.index(stem)]

    def check(self, images: Tensor, least: int | None = None) -> None:
        """Raise a ValueError if images are too small."""
        require_image_size(images, least or self.smallest_image, f"{type(self).__name__} with these options")

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)` to the last maps: Inception-ResNet-v2 has 8x8, Xception 10x10 for 299 pixels."""
        self.check(images)
        return self.net.forward_features(images)

    def forward(self, images: Tensor) -> Any:
        return self.net.forward_head(self.forward_features(images))


class InceptionV3(LibraryNet):
    """Inception-v3; with its auxiliary classifier training returns an `AuxiliaryOutput`.

    Args:
        auxiliary: a classifier on the last 17x17 maps in training; `auxiliary_loss_weights` is the 0.4 of the authors'
            release (the paper names no weight). It needs images of 299 pixels and `imagenet`.
        stem: `imagenet`, or `small`: stride 1 instead of 2 and no first pooling, so that 32 pixels become 12 and not 1.
    """

    def __init__(
        self,
        *,
        auxiliary: bool = True,
        stem: str = "imagenet",
        width: float = 1.0,
        dropout: float = 0.2,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        require_probability("dropout", dropout)
        if auxiliary and stem == "small":
            raise ValueError("model.auxiliary=true needs the maps of model.stem=imagenet; set model.auxiliary=false.")
        options = {"aux_logits": auxiliary, "dropout": dropout, "init_weights": width == 1}
        build = partial(torchvision_model, "inception_v3", num_classes, in_channels, **options)
        super().__init__(build, stem, width, (75, 21))
        self.auxiliary_loss_weights = (0.4,) if auxiliary else ()
        if stem == "small":
            self.net.Conv2d_1a_3x3.conv.stride = (1, 1)
            self.net.maxpool1 = nn.Identity()

    def forward(self, images: Tensor) -> Tensor | AuxiliaryOutput:
        # The kernels of the auxiliary classifier cover 17x17 maps just so.
        self.check(images, 299 if self.training and self.auxiliary_loss_weights else None)
        output = self.net(images)
        return output if isinstance(output, Tensor) else AuxiliaryOutput(output.logits, (output.aux_logits,))

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 2048 * width, H', W')`, 8x8 maps for 299 pixels."""
        self.check(images)
        layers = dict(self.net.named_children())
        x = images
        for name in list(layers)[: list(layers).index("avgpool")]:
            x = x if name == "AuxLogits" else layers[name](x)
        return x


class InceptionResNetV2(LibraryNet):
    """Inception-ResNet-v2.

    Args:
        blocks: residual blocks at 35x35, 17x17 and 8x8 pixels, of which the released net has 10, 20 and 9; one more
            follows the last ones.
        stem: as of `InceptionV3`.
        dropout: probability in front of the last layer; the paper keeps 0.8.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int] = (10, 20, 9),
        stem: str = "imagenet",
        width: float = 1.0,
        dropout: float = 0.2,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        require_probability("dropout", dropout)
        if len(blocks) != 3 or any(not 0 <= few <= most for few, most in zip(blocks, (10, 20, 9), strict=True)):
            raise ValueError(f"model.blocks={list(blocks)} must be three numbers, at most [10, 20, 9].")
        build = partial(timm_model, "inception_resnet_v2", num_classes, in_channels, drop_rate=dropout)
        super().__init__(build, stem, width, (75, 21))
        self.net.repeat = self.net.repeat[: blocks[0]]
        self.net.repeat_1 = self.net.repeat_1[: blocks[1]]
        self.net.repeat_2 = self.net.repeat_2[: blocks[2]]
        if stem == "small":
            self.net.conv2d_1a.conv.stride = (1, 1)
            self.net.maxpool_3a = nn.Identity()


class Xception(LibraryNet):
    """Xception.

    Args:
        stem: `imagenet`, or `small`: stride 1 instead of 2 in the first convolution.
        dropout: probability in front of the last layer; the paper has 0.5 for ImageNet.
    """

    def __init__(
        self,
        *,
        stem: str = "imagenet",
        width: float = 1.0,
        dropout: float = 0.5,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        require_probability("dropout", dropout)
        build = partial(timm_model, "legacy_xception", num_classes, in_channels, drop_rate=dropout)
        super().__init__(build, stem, width, (7, 5))
        if stem == "small":
            self.net.conv1.stride = (1, 1)


def at_width(build: Callable[[], nn.Module], width: float) -> Any:
    """Build a library's net and make every layer but the images and the classes `width` times as wide.

    The wide net is built without storage, so that a narrow one costs neither its memory nor its time.
    """
    if width == 1:
        return build()
    with torch.device("meta"):
        net = build()
    stem = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            narrow_convolution(module, width, keep_input=module is stem)
        elif isinstance(module, nn.BatchNorm2d):
            narrow_norm(module, width)
        elif isinstance(module, nn.Linear):
            narrow_classifier(module, width)
    return net


def narrow_convolution(layer: nn.Conv2d, width: float, keep_input: bool) -> None:
    """Give a convolution `width` times its channels, with He's initial weights."""
    layer.groups = 1 if layer.groups == 1 else whole(layer.groups, width)
    layer.in_channels = layer.in_channels if keep_input else whole(layer.in_channels, width)
    layer.out_channels = whole(layer.out_channels, width)
    shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    layer.weight = nn.Parameter(nn.init.kaiming_normal_(torch.empty(shape), mode="fan_out", nonlinearity="relu"))
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.zeros(layer.out_channels))


def narrow_norm(layer: nn.BatchNorm2d, width: float) -> None:
    """Give a batch normalisation `width` times its channels, untrained."""
    layer.num_features = whole(layer.num_features, width)
    layer.weight = nn.Parameter(torch.ones(layer.num_features))
    layer.bias = nn.Parameter(torch.zeros(layer.num_features))
    layer.running_mean = torch.zeros(layer.num_features)
    layer.running_var = torch.ones(layer.num_features)
    layer.num_batches_tracked = torch.tensor(0)


def narrow_classifier(layer: nn.Linear, width: float) -> None:
    """Give the last layer `width` times its inputs, and torch's initial weights."""
    layer.in_features = whole(layer.in_features, width)
    layer.weight = nn.Parameter(torch.empty(layer.out_features, layer.in_features))
    layer.bias = nn.Parameter(torch.empty(layer.out_features))
    layer.reset_parameters()


def whole(channels: int, width: float) -> int:
    """Return `width` times as many channels."""
    narrow = channels * width
    if narrow < 1 or narrow != int(narrow):
        raise ValueError(f"model.width={width} of {channels} channels is no whole number; 0.5, 0.25 and 0.125 fit.")
    return int(narrow)
