"""MobileNet, and the net of full convolutions that it is compared with.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications" (arXiv 1704.04861,
2017), section 3: every 3x3 convolution but the first is split into one filter a channel (depthwise) and a 1x1
convolution over all channels (pointwise), which divides the cost by 8 to 9. The width multiplier alpha thins every
layer; the resolution multiplier rho is the size of the images.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_probability, require_strides
from convatlas.models.layers.conv_norm import ConvNormAct

STEM_CHANNELS = 32
STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))
"""Table 1: output channels and number of layers between two changes of resolution or width."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}


class DepthwiseSeparable(nn.Sequential):
    """3x3 depthwise and 1x1 pointwise convolution, each with batch norm and activation (figure 3).

    `(B, in, H, W) -> (B, out, H/stride, W/stride)`. Without the norms it costs `1/out + 1/9` of a 3x3 convolution of
    the same shape, in parameters and in multiply-adds (section 3.1).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = activation()
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = activation()


class MobileNetV1(nn.Module):
    """MobileNet (table 1): a 3x3 convolution, 13 depthwise separable layers, global average pooling, one linear layer.

    Args:
        width: the width multiplier alpha; every layer has `alpha` times its channels, rounded down, at least 8.
        strides: strides of the stem and of the first layers with 128, 256, 512 and 1024 channels.
        middle_layers: layers of 512 channels that keep the resolution; 0 is the paper's shallow MobileNet (table 5).
        activation: `relu` as the paper says, or `relu6` as the released code has it.
    """

    def __init__(
        self,
        width: float = 1.0,
        *,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        middle_layers: int = 5,
        activation: str = "relu",
        dropout: float = 0.0,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"model.width={width} must be above 0; the paper has 0.25, 0.5, 0.75 and 1.0.")
        if middle_layers < 0:
            raise ValueError(f"model.middle_layers={middle_layers} must be 0 or more; the paper has 5 and 0.")
        require_strides(strides, len(STAGES))
        require_choice("activation", activation, ACTIVATIONS)
        require_probability("dropout", dropout)
        act = ACTIVATIONS[activation]
        channels = self._scaled(STEM_CHANNELS, width)
        self.stem = ConvNormAct(in_channels, channels, 3, strides[0], activation=act)
        self.stages = nn.Sequential()
        for (full_channels, full_layers), stride in zip(STAGES, (1, *strides[1:]), strict=True):
            layers = 1 + middle_layers if full_channels == 512 else full_layers
            out_channels = self._scaled(full_channels, width)
            stage = nn.Sequential(self.layer(channels, out_channels, stride, act))
            stage.extend(self.layer(out_channels, out_channels, 1, act) for _ in range(layers - 1))
            self.stages.append(stage)
            channels = out_channels
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    @staticmethod
    def _scaled(channels: int, width: float) -> int:
        return max(int(channels * width), 8)

    @staticmethod
    def layer(in_channels: int, out_channels: int, stride: int, activation: type[nn.Module]) -> nn.Sequential:
        return DepthwiseSeparable(in_channels, out_channels, stride, activation)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 1024 * width, H/32, W/32)`."""
        return self.stages(self.stem(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.forward_features(images).mean((2, 3))))


class ConvMobileNet(MobileNetV1):
    """Conv MobileNet (table 4): MobileNet with a full 3x3 convolution for each depthwise separable one.

    Arguments are those of `MobileNetV1`.
    """

    @staticmethod
    def layer(in_channels: int, out_channels: int, stride: int, activation: type[nn.Module]) -> nn.Sequential:
        return ConvNormAct(in_channels, out_channels, 3, stride, activation=activation)
