"""From a model's configuration to the net: checks the arguments against the net's own signature, and calls it."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from convatlas.core.errors import UserError, near_matches
from convatlas.core.targets import checked_arguments, locate
from convatlas.models.interfaces import HasParts


def build_model(model: Mapping[str, Any]) -> nn.Module:
    """Build a net, with new weights, from the section `model` of a configuration: `_target_` and its arguments.

    Raises:
        UserError: an argument is unknown, missing, of a wrong type, or outside the range that the net takes.
    """
    target = locate(model["_target_"])
    arguments = checked_arguments(
        target, {key: value for key, value in model.items() if key not in {"_target_", "_convert_"}}, "model"
    )
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
    return net


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
