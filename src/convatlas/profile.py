"""`python -m convatlas.profile model=resnet_cifar model.depth=110`: what a net costs, without training it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import ValidationError

from convatlas.core.cli import run_hydra
from convatlas.core.config import Positive, Section, describe
from convatlas.core.errors import UserError
from convatlas.core.imports import quick_imports
from convatlas.core.older import upgraded

if TYPE_CHECKING:
    from omegaconf import DictConfig


SIZE = "give channels, height and width, for example input_size=[3,224,224]"


class NetOptions(Section):
    """What the command line may say beside the net, here and in `convatlas show`."""

    input_size: tuple[Positive, Positive, Positive] | None
    part: str | None


class Options(NetOptions):
    """What the command line may say beside the net."""

    batch_size: Positive
    latency: bool
    format: Literal["text", "json"]


OptionsT = TypeVar("OptionsT", bound=NetOptions)


def main(config: DictConfig) -> None:
    """Profile the net that the configuration names, and print the figures as text or JSON."""
    options, size, plain = read(config, Options)
    figures = profile(plain["model"], size, options.batch_size, latency=options.latency, part=options.part)
    figures = {"model": plain["about"]["title"], **figures}
    print(json.dumps(figures) if options.format == "json" else as_text(figures))


def read(config: DictConfig, shape: type[OptionsT]) -> tuple[OptionsT, list[int], dict[str, Any]]:
    """Return the options of a composed net, the channels, height and width of its images, and all values.

    Raises:
        UserError: an option is wrong, or the size of the images is nowhere said.
    """
    from omegaconf import OmegaConf

    composed: Any = OmegaConf.to_container(config, resolve=True)
    plain = upgraded(composed)
    try:
        options = shape.model_validate({key: plain[key] for key in shape.model_fields})
    except ValidationError as error:
        raise UserError(describe(error, "the command line")) from error
    size = options.input_size or plain["about"].get("input_size")
    if size is None:
        raise UserError(f"input_size is missing; {SIZE}.")
    return options, list(size), plain


def profile(
    model: dict[str, Any], input_size: list[int], batch_size: int, *, latency: bool, part: str | None = None
) -> dict[str, Any]:
    """Return the costs of a net, or of a part of it, as plain values; see `convatlas.models.costs` for conventions.

    Raises:
        UserError: the net does not take such images.
    """
    with quick_imports():
        from convatlas.models.build import build_model, part_of
        from convatlas.models.costs import costs_of, measure_latency

    try:
        costs = costs_of(lambda: part_of(build_model(model), part), input_size, batch_size)
    except (ValueError, RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"input_size={input_size}: the net takes no such images ({line.rstrip('.')}); {SIZE}."
        ) from error
    figures = {"input_size": input_size, **asdict(costs)}
    if latency:
        seconds = measure_latency(part_of(build_model(model), part), input_size, batch_size)
        figures |= {"latency_seconds": seconds, "images_per_second": batch_size / seconds}
    return figures


def as_text(figures: dict[str, Any]) -> str:
    """Lay the figures out for reading."""
    size = " x ".join(str(n) for n in figures["input_size"])
    lines = [
        f"{figures['model']}, images of {size}",
        f"parameters              {figures['parameters']:>16,}  trainable",
        f"multiply-adds (MACs)    {figures['macs']:>16,}  convolutions and linear layers, one image",
    ]
    if figures["macs"] != figures["macs_inference"]:
        lines.append(f"  without auxiliary     {figures['macs_inference']:>16,}  at inference")
    if figures["macs_of_weights"]:
        lines.append(f"  to generate weights   {figures['macs_of_weights']:>16,}  once a batch")
    lines.append(f"weights                 {figures['weight_megabytes']:>16,.2f}  MB")
    if figures["activation_bytes"] is not None:
        lines.append(
            f"saved for backward      {figures['activation_bytes'] / 1e6:>16,.2f}  MB at batch {figures['batch_size']}"
        )
    if "latency_seconds" in figures:
        lines.append(
            f"latency                 {figures['latency_seconds'] * 1e3:>16,.2f}  ms at batch {figures['batch_size']}"
        )
        lines.append(f"throughput              {figures['images_per_second']:>16,.1f}  images a second")
    return "\n".join(lines)


def command() -> None:
    """Run the command line, as `python -m convatlas.profile` or `convatlas-profile`, whose words a shell completes."""
    run_hydra(main, "profile")


if __name__ == "__main__":
    command()
