"""Nets that timm and torchvision hold, under this project's two keyword arguments `num_classes` and `in_channels`."""

from typing import Any

from torch import nn

from convatlas.core.errors import near_matches


def timm_model(model_name: str, num_classes: int = 1000, in_channels: int = 3, **options: Any) -> nn.Module:
    """Build any classification net of timm.

    Args:
        model_name: a name of `timm.list_models()`.
        options: passed on to the net, for example `drop_path_rate`.

    Raises:
        ValueError: timm has no such net.
    """
    import timm

    for option in ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"):
        if options.get(option):
            raise ValueError(f"model.{option} is not taken; weights=... names what the net starts from. Leave it out.")
    if not timm.is_model(model_name):
        raise ValueError(
            f"model.model_name={model_name}: timm has no such net. {near_matches(model_name, timm.list_models())}"
        )
    return timm.create_model(model_name, num_classes=num_classes, in_chans=in_channels, **options)


def torchvision_model(model_name: str, num_classes: int = 1000, in_channels: int = 3, **options: Any) -> nn.Module:
    """Build any classification net of torchvision.

    Args:
        model_name: a name of `torchvision.models.list_models(torchvision.models)`.
        in_channels: channels of the images; other than 3, the first convolution is made anew.

    Raises:
        ValueError: torchvision has no such net.
    """
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if model_name not in names:
        raise ValueError(
            f"model.model_name={model_name}: torchvision has no such net. {near_matches(model_name, names)}"
        )
    net: nn.Module = torchvision.models.get_model(model_name, weights=None, num_classes=num_classes, **options)
    return with_input_channels(net, in_channels)


def with_input_channels(net: nn.Module, in_channels: int) -> nn.Module:
    """Replace the first convolution of a net by a new one for `in_channels` if it takes another number."""
    name, first = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == in_channels:
        return net
    parent = net.get_submodule(name.rpartition(".")[0])
    replacement = nn.Conv2d(
        in_channels,
        first.out_channels,
        kernel_size=first.kernel_size,  # type: ignore[arg-type]
        stride=first.stride,  # type: ignore[arg-type]
        padding=first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    nn.init.kaiming_normal_(replacement.weight, mode="fan_out", nonlinearity="relu")
    setattr(parent, name.rpartition(".")[2], replacement)
    return net
