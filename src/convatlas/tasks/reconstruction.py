"""Pictures of what a net's features hold of the image: reconstructions, and images between two images.

For nets with an inverse (`convatlas.models.interfaces.Invertible`). Jacobsen, Smeulders, Oyallon, "i-RevNet: Deep
Invertible Networks" (ICLR 2018), section 4.4 and figures 4 and 7, draw the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from convatlas.models.interfaces import Invertible
from convatlas.tasks.figures import displayable, grid

__all__ = ["interpolate", "interpolation_figure", "reconstruct", "reconstruction_figure"]


def reconstruct(net: nn.Module, images: Tensor) -> Tensor:
    """Compute the features of images and the images of these features; `(B, C, H, W) -> (B, C, H, W)`, evaluation mode.

    Raises:
        TypeError: the net has no inverse.
    """
    with _evaluated(net) as invertible:
        return invertible.inverse(invertible.forward_features(images))


def interpolate(net: nn.Module, first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Compute the images of features on the straight line between those of two images.

    Args:
        net: a net with an inverse; it is run in evaluation mode.
        first: `(C, H, W)`, the line's beginning.
        second: `(C, H, W)`, its end.
        steps: images on the line, at least 2.

    Returns:
        `(steps, C, H, W)`; the first and the last are the two images, up to rounding.

    Raises:
        TypeError: the net has no inverse.
        ValueError: fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"steps={steps} must be at least 2: the two images themselves.")
    with _evaluated(net) as invertible:
        ends = invertible.forward_features(torch.stack([first, second]))
        share = torch.linspace(0, 1, steps, device=ends.device, dtype=ends.dtype).view(-1, 1, 1, 1)
        return invertible.inverse(torch.lerp(ends[:1], ends[1:], share))


def reconstruction_figure(net: nn.Module, images: Tensor, at_most: int = 8) -> Figure:
    """Draw images `(N, C, H, W)` above what the net's last features hold of them; the title has the largest error.

    Raises:
        TypeError: the net has no inverse.
    """
    images = images[:at_most]
    again = reconstruct(net, images)
    error = (again - images).abs().max().item()
    figure, axes = grid(2 * len(images), columns=len(images))
    for row, (pictures, title) in enumerate(((images, "image"), (again, "from features"))):
        for axis, picture in zip(axes[row * len(images) :], pictures, strict=False):
            axis.imshow(displayable(picture), cmap="gray")
            axis.set_title(title, fontsize=9)
    figure.suptitle(f"largest error {error:.1e}", fontsize=10)
    return figure


def interpolation_figure(net: nn.Module, first: Tensor, second: Tensor, steps: int = 8) -> Figure:
    """Draw the images on the line between two images `(C, H, W)`, above in the space of features, below in pixels.

    Raises:
        TypeError: the net has no inverse.
        ValueError: fewer than 2 steps.
    """
    in_features = interpolate(net, first, second, steps)
    share = torch.linspace(0, 1, steps, device=first.device, dtype=first.dtype)
    in_pixels = torch.lerp(first, second, share.view(-1, 1, 1, 1))
    figure, axes = grid(2 * steps, columns=steps)
    for row, (pictures, name) in enumerate(((in_features, "features"), (in_pixels, "pixels"))):
        for number, picture in enumerate(pictures):
            axis = axes[row * steps + number]
            axis.imshow(displayable(picture), cmap="gray")
            axis.set_title(f"{name} {share[number].item():.2f}", fontsize=8)
    return figure


@contextmanager
def _evaluated(net: nn.Module) -> Iterator[Invertible]:
    """Put a net into evaluation mode for a while, without gradients and in full precision."""
    if not isinstance(net, Invertible):
        raise TypeError(f"{type(net).__name__} has no inverse; take a net that has one, such as irevnet_small.")
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad(), torch.autocast(next(net.parameters()).device.type, enabled=False):
            yield net
    finally:
        net.train(was_training)
