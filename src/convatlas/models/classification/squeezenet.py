"""SqueezeNet, plain and with bypass connections.

Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer, "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and
<0.5MB model size" (arXiv 1602.07360, 2016), version 1.0. The fire module squeezes with 1x1 convolutions before it
expands with 1x1 and 3x3 ones; the nets differ in the metaparameters of section 5.1 and in the bypass of section 6.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_image_size, require_positive, require_probability
from convatlas.models.layers.conv_norm import ConvNormAct

FIRE_MODULES = 8  # fire2 to fire9
POOLED_AFTER = (2, 6)  # max pooling follows fire4 and fire8, besides conv1


class Fire(nn.Module):
    """Fire module (section 3.2): a 1x1 squeeze, then 1x1 and 3x3 expansions side by side.

    `(B, in, H, W) -> (B, expand1x1 + expand3x3, H, W)`. What `bypass` makes of the module's input, if anything, is
    added to the result.
    """

    def __init__(
        self,
        in_channels: int,
        squeeze: int,
        expand1x1: int,
        expand3x3: int,
        *,
        bypass: nn.Module | None = None,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if batch_norm else None
        self.squeeze = ConvNormAct(in_channels, squeeze, norm=norm, bias=not batch_norm)
        self.expand1x1 = ConvNormAct(squeeze, expand1x1, norm=norm, bias=not batch_norm)
        self.expand3x3 = ConvNormAct(squeeze, expand3x3, 3, norm=norm, bias=not batch_norm)
        self.bypass = bypass

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeeze(x)
        expanded = torch.cat((self.expand1x1(squeezed), self.expand3x3(squeezed)), dim=1)
        return expanded if self.bypass is None else expanded + self.bypass(x)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0 (table 1 and figure 2).

    Args:
        bypass: `none`; `simple`, the input is added to the output of fire3, 5, 7 and 9, where both have as many
            channels; `complex`, as simple, and through a 1x1 convolution around fire2, 4, 6 and 8.
        stem_channels: filters of conv1.
        stem_kernel: side of its filters, which see no padding.
        stem_stride: its stride.
        base_expand: expand filters of the first two fire modules (base_e).
        expand_increment: how many more the later ones get (incr_e).
        modules_per_increment: fire modules between two increments (freq).
        squeeze_ratio: squeeze filters of a module as a fraction of its expand filters (SR).
        fraction_3x3: fraction of the expand filters that are 3x3 (pct_3x3).
        dropout: probability of setting a value after fire9 to zero.
        batch_norm: normalise after each convolution but conv10; the paper has no batch norm.
        rectify_logits: apply ReLU to conv10's maps too, as the released net does. With few classes it can kill some.
    """

    def __init__(
        self,
        bypass: str = "none",
        *,
        stem_channels: int = 96,
        stem_kernel: int = 7,
        stem_stride: int = 2,
        base_expand: int = 128,
        expand_increment: int = 128,
        modules_per_increment: int = 2,
        squeeze_ratio: float = 0.125,
        fraction_3x3: float = 0.5,
        dropout: float = 0.5,
        batch_norm: bool = False,
        rectify_logits: bool = True,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("bypass", bypass, ("none", "simple", "complex"))
        require_positive("modules_per_increment", modules_per_increment)
        require_probability("dropout", dropout)
        if base_expand < 2:
            raise ValueError(f"model.base_expand={base_expand} must be at least 2: one filter of each kind.")
        if not 0 < squeeze_ratio <= 1:
            raise ValueError(f"model.squeeze_ratio={squeeze_ratio} must be above 0 and at most 1.")
        if not 0 < fraction_3x3 < 1:
            raise ValueError(f"model.fraction_3x3={fraction_3x3} must lie between 0 and 1: both kinds are needed.")
        # Three poolings leave a pixel of at least 8, as each needs at least twice what it leaves.
        self.smallest_image = 7 * stem_stride + stem_kernel
        norm = nn.BatchNorm2d if batch_norm else None
        unit = partial(ConvNormAct, padding=0, norm=norm, bias=not batch_norm)
        self.conv1 = unit(in_channels, stem_channels, stem_kernel, stem_stride)
        self.fires = nn.ModuleList()
        channels = stem_channels
        for index in range(FIRE_MODULES):
            expand = base_expand + expand_increment * (index // modules_per_increment)
            expand3x3 = min(max(round(expand * fraction_3x3), 1), expand - 1)
            squeeze = max(round(expand * squeeze_ratio), 1)
            around = self._bypass(bypass, channels, expand, batch_norm)
            fire = Fire(channels, squeeze, expand - expand3x3, expand3x3, bypass=around, batch_norm=batch_norm)
            self.fires.append(fire)
            channels = expand
        self.dropout = nn.Dropout(dropout)
        self.conv10 = nn.Conv2d(channels, num_classes, 1)
        self.rectify_logits = rectify_logits
        self._initialise()

    @staticmethod
    def _bypass(kind: str, in_channels: int, out_channels: int, batch_norm: bool) -> nn.Module | None:
        if kind != "none" and in_channels == out_channels:
            return nn.Identity()
        if kind != "complex":
            return None
        way_around = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=not batch_norm))
        return way_around.append(nn.BatchNorm2d(out_channels)) if batch_norm else way_around

    def _initialise(self) -> None:
        """He initialisation; the classifier starts near zero, as in the released net, and needs no batch norm."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.conv10.weight, std=0.01)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 512, H/16, W/16)`, after fire9."""
        require_image_size(images, self.smallest_image, "SqueezeNet with this stem")
        x = self._pool(self.conv1(images))
        for index, fire in enumerate(self.fires):
            x = fire(x)
            if index in POOLED_AFTER:
                x = self._pool(x)
        return x

    @staticmethod
    def _pool(x: Tensor) -> Tensor:
        """Max pooling of 3x3 with stride 2; a window may stand over the border, as in Caffe."""
        return F.max_pool2d(x, 3, stride=2, ceil_mode=True)

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, num_classes)` logits; there is no fully connected layer."""
        class_maps = self.conv10(self.dropout(self.forward_features(images)))
        return (F.relu(class_maps) if self.rectify_logits else class_maps).mean((2, 3))
