"""A two-layer convolutional net for MNIST whose second kernel a static hypernetwork generates.

Ha, Dai, Le, "HyperNetworks" (arXiv 1609.09106), sections 3.1 and 4.1: the 7x7x16x16 kernel of 12,544 weights is made
from 4 numbers by a generator of 4,240 weights. What the text leaves open (pooling, ReLU, one linear layer) is as in the
notebook that the first author published.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import require_image_size, require_positive
from convatlas.models.layers.generated_kernels import GeneratedKernels, KernelShape, LearntKernels
from convatlas.models.layers.initialisation import initialise_he

CHANNELS, KERNEL_SIZE = 16, 7
POOLED_SIDE = 7  # 28 pixels after two poolings


class HyperConvNet(nn.Module):
    """Two 7x7 convolutions with ReLU and 2x2 pooling, one linear layer.

    Args:
        generated: the second kernel is generated; otherwise it is a weight of the same shape.
        embedding_size: N_z, length of the embedding, and the generator's hidden size d.
    """

    def __init__(
        self, *, generated: bool = True, embedding_size: int = 4, num_classes: int = 10, in_channels: int = 1
    ) -> None:
        super().__init__()
        require_positive("embedding_size", embedding_size)
        self.conv1 = nn.Conv2d(in_channels, CHANNELS, KERNEL_SIZE, padding=KERNEL_SIZE // 2)
        shapes = [KernelShape(CHANNELS, CHANNELS)]
        self.kernels = (
            GeneratedKernels(shapes, KERNEL_SIZE, embedding_size, CHANNELS)
            if generated
            else LearntKernels(shapes, KERNEL_SIZE)
        )
        self.bias2 = nn.Parameter(torch.zeros(CHANNELS))
        self.pool = nn.AdaptiveAvgPool2d(POOLED_SIDE)  # leaves the paper's 28 x 28 images, 7 x 7 here, as they are
        self.classifier = nn.Linear(CHANNELS * POOLED_SIDE**2, num_classes)
        initialise_he(self, "fan_in")
        nn.init.zeros_(self.classifier.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        require_image_size(images, 4, "hyper_convnet")
        (kernel2,) = self.kernels()
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(F.conv2d(x, kernel2, self.bias2, padding=KERNEL_SIZE // 2)), 2)
        return self.pool(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.forward_features(images).flatten(1))
