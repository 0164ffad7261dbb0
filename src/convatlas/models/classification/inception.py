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
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.models.adapters import timm_model, torchvision_model
from convatlas.models.checks import require_choice, require_image_size, require_probability
from convatlas.models.interfaces import AuxiliaryOutput

STEMS = ("imagenet", "small")


class InceptionV3(nn.Module):
    """Inception-v3: `(B, C, H, W) -> (B, num_classes)`, in training with its auxiliary classifier `AuxiliaryOutput`.

    Args:
        auxiliary: a classifier on the last 17x17 maps in training; `auxiliary_loss_weights` is the 0.4 of the authors'
            release (the paper names no weight).
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
        super().__init__()
        require_choice("stem", stem, STEMS)
        require_probability("dropout", dropout)
        if auxiliary and stem == "small":
            raise ValueError("model.auxiliary=true needs the maps of model.stem=imagenet; set model.auxiliary=false.")

        def build() -> nn.Module:
            options = {"aux_logits": auxiliary, "dropout": dropout, "init_weights": width == 1}
            return torchvision_model("inception_v3", num_classes, in_channels, **options)

        self.net = at_width(build, width)
        self.auxiliary_loss_weights = (0.4,) if auxiliary else ()
        self.smallest_image = 75 if stem == "imagenet" else 21
        if stem == "small":
            self.net.Conv2d_1a_3x3.conv.stride = (1, 1)
            self.net.maxpool1 = nn.Identity()

    def forward(self, images: Tensor) -> Tensor | AuxiliaryOutput:
        # The kernels of the auxiliary classifier cover 17x17 maps just so.
        with_auxiliary = self.training and bool(self.auxiliary_loss_weights)
        require_image_size(images, 299 if with_auxiliary else self.smallest_image, "Inception-v3 with these options")
        output = self.net(images)
        if isinstance(output, Tensor):
            return output
        return AuxiliaryOutput(output.logits, (output.aux_logits,))

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 2048 * width, H', W')`, 8x8 maps for 299 pixels."""
        require_image_size(images, self.smallest_image, "Inception-v3 with these options")
        layers = dict(self.net.named_children())
        x = images
        for name in list(layers)[: list(layers).index("avgpool")]:
            x = x if name == "AuxLogits" else layers[name](x)
        return x


class InceptionResNetV2(nn.Module):
    """Inception-ResNet-v2: `(B, C, H, W) -> (B, num_classes)`.

    Args:
        blocks: residual blocks at 35x35, 17x17 and 8x8 pixels, of which the released net has 10, 20 and 9; one more
            follows the last ones.
        stem: `imagenet`, or `small`: stride 1 instead of 2 and no first pooling, so that 32 pixels become 12 and not 1.
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
        super().__init__()
        require_choice("stem", stem, STEMS)
        require_probability("dropout", dropout)
        if len(blocks) != 3 or any(not 0 <= few <= most for few, most in zip(blocks, (10, 20, 9), strict=True)):
            raise ValueError(f"model.blocks={list(blocks)} must be three numbers, at most [10, 20, 9].")

        def build() -> nn.Module:
            return timm_model("inception_resnet_v2", num_classes, in_channels, drop_rate=dropout)

        self.net = at_width(build, width)
        self.net.repeat = self.net.repeat[: blocks[0]]
        self.net.repeat_1 = self.net.repeat_1[: blocks[1]]
        self.net.repeat_2 = self.net.repeat_2[: blocks[2]]
        self.smallest_image = 75 if stem == "imagenet" else 21
        if stem == "small":
            self.net.conv2d_1a.conv.stride = (1, 1)
            self.net.maxpool_3a = nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 1536 * width, H', W')`, 8x8 maps for 299 pixels."""
        require_image_size(images, self.smallest_image, "Inception-ResNet-v2 with these options")
        return self.net.forward_features(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.net.forward_head(self.forward_features(images))


class Xception(nn.Module):
    """Xception: `(B, C, H, W) -> (B, num_classes)`.

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
        super().__init__()
        require_choice("stem", stem, STEMS)
        require_probability("dropout", dropout)

        def build() -> nn.Module:
            return timm_model("legacy_xception", num_classes, in_channels, drop_rate=dropout)

        self.net = at_width(build, width)
        self.smallest_image = 7 if stem == "imagenet" else 5
        if stem == "small":
            self.net.conv1.stride = (1, 1)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 2048 * width, H', W')`, 10x10 maps for 299 pixels."""
        require_image_size(images, self.smallest_image, "Xception with these options")
        return self.net.forward_features(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.net.forward_head(self.forward_features(images))


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
