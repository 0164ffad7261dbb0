"""From a model's configuration to the net: checks the arguments against the net's own signature, and calls it."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from convatlas.core.errors import UserError, near_matches
from convatlas.core.targets import checked_arguments, locate
from convatlas.models.interfaces import HasParts

NORM = {"bn_eps": "eps", "bn_momentum": "momentum"}
"""Options of every net, named as in timm: they hold for all its batch normalisations. A net may have its own."""


def build_model(model: Mapping[str, Any]) -> nn.Module:
    """Build a net, with new weights, from the section `model` of a configuration: `_target_` and its arguments.

    Raises:
        UserError: an argument is unknown, missing, of a wrong type, or outside the range that the net takes.
    """
    target = locate(model.get("_target_"), "model._target_")
    norm = {key: model[key] for key in NORM if key in model and key not in inspect.signature(target).parameters}
    given = {key: value for key, value in model.items() if key not in {"_target_", "_convert_", *norm}}
    arguments = checked_arguments(target, given, "model")
    try:
        net: nn.Module = target(**arguments)
    except ValueError as error:
        raise UserError(str(error)) from error
    except TypeError as error:  # options that a function passes on to a net of another package
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            raise UserError(
                f"model.{unknown[1]}: {model['_target_']} has no such option ({error}); leave it out or correct it."
            ) from error
        raise
    for key, value in norm.items():
        _set_batch_norm(net, key, value)
    return net


def _set_batch_norm(net: nn.Module, key: str, value: Any) -> None:
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms or not isinstance(value, float) or not 0 < value <= 1:
        why = "must be above 0 and at most 1" if norms else "is for nets with batch normalisation"
        raise UserError(f"model.{key}={value} {why}; correct it or leave it out.")
    for module in norms:
        setattr(module, NORM[key], value)


def part_of(net: nn.Module, name: str | None) -> nn.Module:
    """Return a part of a net that works alone, `column_3` of a FractalNet for example, or the whole net for None.

    Raises:
        UserError: the net has no part of that name.
    """
    if name is None:
        return net
    parts = net.parts() if isinstance(net, HasParts) else {}
    if name not in parts:
        hint = near_matches(name, parts) if parts else "This net has no parts; leave the option out."
        raise UserError(f"part={name}: the net has no part of that name. {hint}")
    return parts[name]
