"""Class activation maps: where a classifier finds its class (Zhou et al. 2016, arXiv:1512.04150, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convatlas.core.errors import UserError
from convatlas.tasks.figures import displayable, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["activation_map_figure", "class_activation_maps"]


def class_activation_maps(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the map of the predicted class: equation 2 of the paper, the last feature maps under the class's weights.

    A net has such maps if its logits are a linear layer of the spatial mean of its last feature maps. The mean of
    such a map plus the layer's bias is then the logit itself.

    Args:
        net: in evaluation mode.
        images: `(N, C, H, W)`.

    Returns:
        maps `(N, h, w)` in the size of the last features, and the predicted classes `(N,)`.

    Raises:
        UserError: the net does not end with a spatial mean and a linear layer.
    """
    features: list[Tensor] = []
    last: list[tuple[nn.Linear, Tensor]] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Linear):
            last.append((module, inputs[0]))
        elif isinstance(output, Tensor) and output.dim() == 4:
            features.append(output)

    hooks = [module.register_forward_hook(see) for module in net.modules()]
    try:
        with torch.no_grad():
            logits = net(images)
    finally:
        for hook in hooks:
            hook.remove()
    if last:
        layer, mean = last[-1]
        seen = (maps for maps in reversed(features) if maps.shape[:2] == mean.shape and maps.shape[-1] > 1)
        for maps in (end for each in seen for end in (each, each.relu())):  # some nets call relu without a module
            if torch.allclose(maps.mean((2, 3)), mean, atol=1e-5):
                classes = logits.argmax(dim=1)
                return torch.einsum("nchw,nc->nhw", maps, layer.weight[classes].detach()), classes
    raise UserError(
        "recipe.activation_maps=true: this net does not end with the mean over its last maps and one linear layer; "
        "set recipe.activation_maps=false."
    )


def activation_map_figure(net: nn.Module, images: Tensor, class_names: list[str], at_most: int = 8) -> Figure:
    """Draw images, and below each the map of the class that it was given: dark is against it, bright speaks for it."""
    images = images[:at_most]
    maps, classes = class_activation_maps(net, images)
    figure, axes = grid(2 * len(images), columns=len(images), side=1.6)
    height, width = images.shape[-2:]
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)
    shown = zip(images, maps.float().cpu().numpy(), classes.tolist(), strict=True)
    for number, (image, seen, given) in enumerate(shown):
        above, below = axes[number], axes[len(images) + number]
        above.set_title(class_names[given], fontsize=9)
        for axis in (above, below):
            axis.imshow(displayable(image), cmap="gray", extent=whole)
        below.imshow(seen, cmap="magma", alpha=0.65, extent=whole, interpolation="bilinear")
    return figure
