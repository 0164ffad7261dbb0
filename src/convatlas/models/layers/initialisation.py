"""Initial weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

SCHEMES: dict[str, Callable[..., Any]] = {
    "paper": partial(nn.init.normal_, std=0.01),
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
}
"""Of the nets before batch normalisation: AlexNet's Gaussian, He's for ReLU, Glorot and Bengio's."""


def initialise_he(net: nn.Module, mode: str = "fan_out", kinds: tuple[type[nn.Module], ...] = (nn.Conv2d,)) -> None:
    """Draw the weights of all layers of some kinds as He et al. (ICCV 2015) for ReLU; their biases are 0.

    Args:
        mode: keep the variance of activations, `fan_in`, or, as the authors' code, of gradients, `fan_out`.
        kinds: classes of the layers.
    """
    for module in net.modules():
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")  # type: ignore[arg-type]
            if module.bias is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def initialise(net: nn.Module, scheme: str, bias_of: Callable[[str], float] = lambda _: 0.0) -> None:
    """Draw all weights of a net of convolutions and linear layers by one of `SCHEMES`.

    Args:
        scheme: its name.
        bias_of: the constant that a bias starts at, by its name.
    """
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.constant_(parameter, bias_of(name))
        else:
            SCHEMES[scheme](parameter)
