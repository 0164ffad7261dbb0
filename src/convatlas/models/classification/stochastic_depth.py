"""ResNet with stochastic depth, and stochastic depth for residual nets of timm.

Huang, Sun, Liu, Sedra, Weinberger, "Deep Networks with Stochastic Depth" (ECCV 2016). The net is the CIFAR ResNet of
section 4: a 3x3 convolution, three stages of n blocks with 16, 32 and 64 filters, global average pooling and one linear
layer, 6n+2 layers in all. What the paper leaves open of the two shortcuts that change the shape follows the authors'
released code: the mean of 2x2 pixels, and zero channels. They carry no weights, so that all 3n blocks can be left out.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.adapters import timm_model
from convatlas.models.checks import blocks_for_depth, require_positive
from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.models.layers.initialisation import initialise_he
from convatlas.models.layers.shortcuts import AveragePoolShortcut
from convatlas.models.layers.stochastic_depth import GatedBlocks, GatedNet, Gates, survival_probabilities, weighted


class BasicBlock(nn.Module):
    """A branch of two 3x3 convolutions that can be left out; `(B, in, H, W) -> (B, out, H/stride, W/stride)`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        first = ConvNormAct(in_channels, out_channels, 3, stride)
        self.branch = nn.Sequential(*first, *ConvNormAct(out_channels, out_channels, 3, activation=None))
        self.shortcut = AveragePoolShortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """Add the weighted branch to the shortcut, then ReLU (equations 2 and 5); with weight 0, the shortcut alone.

        The ReLU changes nothing about a shortcut of what is not negative, as the output of the block before is not.
        """
        shortcut = self.shortcut(x)
        if weight == 0:
            return shortcut
        return F.relu(weighted(self.branch(x), weight) + shortcut)


def stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> GatedBlocks:
    """Build blocks of one width, of which the first strides."""
    first = BasicBlock(in_channels, out_channels, stride)
    return GatedBlocks([first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1))])


class StochasticDepthResNet(GatedNet):
    """ResNet of `depth` = 6n+2 layers with stochastic depth.

    Args:
        depth: number of layers with weights, 6n+2; the paper has 110, 152 and 1202.
        survival: p_L, probability of keeping the last block in a training batch; 1 is the net of constant depth.
        schedule: `linear`, from near 1 at the first block down to `survival`, or `uniform`, see
            `survival_probabilities`.
        width: filters of the first stage; the next two have twice and four times as many.
    """

    def __init__(
        self,
        *,
        depth: int = 110,
        survival: float = 0.5,
        schedule: str = "linear",
        width: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        blocks = blocks_for_depth(depth, step=6, others=2)
        require_positive("width", width)
        self.gates = Gates(survival_probabilities(survival, schedule, 3 * blocks))
        self.stem = ConvNormAct(in_channels, width, 3)
        self.stage1 = stage(width, width, blocks, 1)
        self.stage2 = stage(width, 2 * width, blocks, 2)
        self.stage3 = stage(2 * width, 4 * width, blocks, 2)
        self.classifier = nn.Linear(4 * width, num_classes)
        initialise_he(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 4 * width, H/4, W/4)`."""
        return self.gated_stages(self.stem(images))


def last_activations() -> dict[type[nn.Module], str | None]:
    """Return the residual blocks of timm that fit, each with the name of the activation behind its sum, if any.

    What they have in common: the branch ends at `drop_path`, where it meets the shortcut, and what is left without the
    branch is known, the block's `downsample` and that activation. Subclasses are other blocks and do not fit.
    """
    from timm.models import _efficientnet_blocks, resnet

    return {
        resnet.BasicBlock: "act2",
        resnet.Bottleneck: "act3",
        _efficientnet_blocks.DepthwiseSeparableConv: None,
        _efficientnet_blocks.EdgeResidual: None,
        _efficientnet_blocks.InvertedResidual: None,
    }


class BranchWeight(nn.Module):
    """Weight the output of a branch by its survival probability in evaluation; in place of timm's drop path."""

    def __init__(self, survival: float) -> None:
        super().__init__()
        self.survival = survival

    def forward(self, branch: Tensor) -> Tensor:
        return branch if self.training else weighted(branch, self.survival)

    def extra_repr(self) -> str:
        return f"survival={self.survival:g}"


class GatedTimmBlock(nn.Module):
    """A residual block of timm that is called only if its gate is open, number `index` of the net's `gates`.

    timm's nets give their blocks no weight, so it asks `gates` what was drawn last. A block that is computed again for
    its gradient must not have seen another forward pass in training in between. `last_activation` names the block's
    activation behind the sum, if there is one.
    """

    def __init__(self, block: nn.Module, last_activation: str | None, gates: Gates, index: int) -> None:
        super().__init__()
        self.block = block
        self.last_activation = last_activation
        self.gates = gates
        self.index = index
        block.drop_path = BranchWeight(gates.survival[index])

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.gates.open[self.index]:
            return self._without_branch(x)
        return self.block(x)

    def _without_branch(self, x: Tensor) -> Tensor:
        downsample = getattr(self.block, "downsample", None)
        shortcut = x if downsample is None else downsample(x)
        if self.last_activation is None:
            return shortcut
        activation = getattr(self.block, self.last_activation)
        return activation(x.clone() if shortcut is x else shortcut)  # it works in place, and x is not this block's


class TimmWithStochasticDepth(GatedNet):
    """A net of timm whose residual blocks are left out of training batches, shortcuts excepted.

    timm's own `drop_path_rate` computes every branch and masks it for single images. Shortcuts with weights, as where a
    ResNet changes the shape, are always computed.

    Args:
        model_name: a name of `timm.list_models()`; a net with blocks that fit, see `last_activations`.
        survival: p_L, probability of keeping the last residual block in a training batch.
        schedule: `linear` or `uniform`, see `survival_probabilities`.
    """

    def __init__(
        self,
        *,
        model_name: str,
        survival: float = 0.5,
        schedule: str = "linear",
        num_classes: int = 1000,
        in_channels: int = 3,
        **options: Any,
    ) -> None:
        super().__init__()
        if options.get("drop_path_rate"):
            raise ValueError(
                f"model.drop_path_rate={options['drop_path_rate']} does not go with stochastic depth, which does the "
                "same without computing the branch; leave it out."
            )
        self.net = timm_model(model_name, num_classes, in_channels, **options)
        fitting = last_activations()
        places = [name for name, module in self.net.named_modules() if type(module) in fitting and has_shortcut(module)]
        if not places:
            raise ValueError(
                f"model.model_name={model_name} has no residual block that can be left out; choose a net of timm's "
                "resnet blocks, such as resnet50 or seresnet50, or of inverted residuals, such as efficientnet_b0."
            )
        self.gates = Gates(survival_probabilities(survival, schedule, len(places)))
        for index, name in enumerate(places):
            block = self.net.get_submodule(name)
            self.net.set_submodule(name, GatedTimmBlock(block, fitting[type(block)], self.gates, index))

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, C', H', W')`, as the net's own."""
        if self.training:
            self.gates.draw()
        return self.net.forward_features(images)  # type: ignore[operator]

    def forward(self, images: Tensor) -> Tensor:
        return self.net.forward_head(self.forward_features(images))  # type: ignore[operator]


def has_shortcut(block: nn.Module) -> bool:
    """Say whether a block of timm is residual; the inverted ones are where neither size nor channels change."""
    return getattr(block, "has_skip", True)
