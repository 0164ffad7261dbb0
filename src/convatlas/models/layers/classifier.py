"""The end that most classification nets share."""

from torch import Tensor, nn


class PooledClassifier(nn.Module):
    """A net whose linear layer `classifier` sees the mean over all places of the last map, `forward_features`."""

    classifier: nn.Module

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, channels, H', W')`."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.forward_features(images).mean((2, 3)))
