"""Wide ResNet whose kernels a static hypernetwork generates.

Ha, Dai, Le, "HyperNetworks" (arXiv 1609.09106), sections 3.1 and 4.2: of a pre-activation WRN-40-1 or WRN-40-2
(Zagoruyko, Komodakis, BMVC 2016) all 3x3 kernels of the three stages are made by one linear generator out of learnt
embeddings. The stem, batch normalisation, biases, shortcuts and the classifier have weights of their own.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import blocks_for_depth, require_all_positive, require_choice
from convatlas.models.layers.classifier import PooledClassifier
from convatlas.models.layers.generated_kernels import GeneratedKernels, KernelShape, LearntKernels
from convatlas.models.layers.initialisation import initialise_he
from convatlas.models.layers.shortcuts import ZeroPadShortcut

SHORTCUTS = ("identity", "projection")


class HyperBlock(nn.Module):
    """One residual block without its two 3x3 kernels, which it is given.

    `(B, in, H, W), (out, in, 3, 3), (out, out, 3, 3) -> (B, out, H/stride, W/stride)`. Each convolution comes after BN
    and ReLU. Where the number of channels changes, the shortcut starts from the block's first activation.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str, conv_bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.bias1 = nn.Parameter(torch.zeros(out_channels)) if conv_bias else None
        self.bias2 = nn.Parameter(torch.zeros(out_channels)) if conv_bias else None
        self.stride = stride
        self.shortcut: nn.Module | None = None
        if in_channels != out_channels and shortcut == "identity":
            self.shortcut = ZeroPadShortcut(in_channels, out_channels, stride)
        elif in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor, kernel1: Tensor, kernel2: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        out = F.conv2d(activated, kernel1, self.bias1, stride=self.stride, padding=1)
        out = F.conv2d(F.relu(self.norm2(out)), kernel2, self.bias2, padding=1)
        return out + (x if self.shortcut is None else self.shortcut(activated))


class HyperWideResNet(PooledClassifier):
    """Hyper WRN-`depth`-`width`; with `generated=False` the plain net that the paper compares it with.

    Args:
        depth: layers with weights, 6n+4 for n blocks a stage.
        width: the widening factor k; stages have 16k, 32k and 64k filters.
        generated: the kernels of the three stages are generated; otherwise they are weights of the same shapes.
        embedding_size: N_z, length of the embedding of a basic kernel, and the generator's hidden size d.
        basic_channels: input and output channels of a basic kernel. It must divide 16, the stem's filters.
        shortcut: where the number of channels changes: `identity` takes every second pixel and adds zero channels,
            `projection` is a 1x1 convolution, as in the Wide ResNet paper.
        conv_bias: the 3x3 convolutions have biases.
        kernel_decay: weight of the sum of squares of all convolution kernels, the generated ones among them, in the
            loss, see `loss_terms`. The paper prints "0.0005%".
        stem_stride: stride of the first convolution: 1, the paper's, or more for a cheaper net.
    """

    def __init__(
        self,
        *,
        depth: int = 40,
        width: int = 1,
        generated: bool = True,
        embedding_size: int = 64,
        basic_channels: int = 16,
        shortcut: str = "identity",
        conv_bias: bool = True,
        kernel_decay: float = 5e-6,
        stem_stride: int = 1,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        blocks = blocks_for_depth(depth, step=6, others=4)
        require_choice("shortcut", shortcut, SHORTCUTS)
        require_all_positive(width=width, embedding_size=embedding_size)
        require_all_positive(basic_channels=basic_channels, stem_stride=stem_stride)
        if kernel_decay < 0:
            raise ValueError(f"model.kernel_decay={kernel_decay} must be at least 0; 0.000005 is the paper's.")
        self.kernel_decay = kernel_decay
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.stem = nn.Conv2d(in_channels, widths[0], 3, stride=stem_stride, padding=1, bias=conv_bias)
        self.blocks = nn.ModuleList()
        shapes = []
        for before, after in pairwise(widths):
            for into in [before] + [after] * (blocks - 1):
                stride = 2 if len(self.blocks) in (blocks, 2 * blocks) else 1
                self.blocks.append(HyperBlock(into, after, stride, shortcut, conv_bias))
                shapes += [KernelShape(after, into), KernelShape(after, after)]
        self.kernels = (
            GeneratedKernels(shapes, 3, embedding_size, basic_channels) if generated else LearntKernels(shapes, 3)
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.classifier = nn.Linear(widths[-1], num_classes)
        initialise_he(self)
        nn.init.zeros_(self.classifier.bias)
        self._kernels_of_step: list[Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy does not take the graph of the last step along; tensors inside a graph cannot be copied.
        return {**self.__dict__, "_kernels_of_step": None}

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 64 * width, H/4, W/4)`, behind the last BN and ReLU; the kernels are made once."""
        kernels = self.kernels()
        if self.training and torch.is_grad_enabled():
            self._kernels_of_step = kernels
        x = self.stem(images)
        for block, kernel1, kernel2 in zip(self.blocks, kernels[::2], kernels[1::2], strict=True):
            x = block(x, kernel1, kernel2)
        return F.relu(self.norm(x))

    def loss_terms(self) -> dict[str, Tensor]:
        """Return `kernel_decay`, the weighted sum of squares of the kernels that the last training pass has used.

        Kernels are those of all convolutions, stem and projections included. The decay of an optimiser would act on
        the embeddings and the generator instead, which is another regulariser.
        """
        kernels = self.kernels() if self._kernels_of_step is None else self._kernels_of_step
        self._kernels_of_step = None
        own = [module.weight for module in self.modules() if isinstance(module, nn.Conv2d)]
        return {
            "kernel_decay": self.kernel_decay * torch.stack([k.float().square().sum() for k in own + kernels]).sum()
        }
