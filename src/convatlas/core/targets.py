"""From a dotted name and arguments in a configuration to the object they stand for."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from convatlas.core.errors import UserError, near_matches

__all__ = ["checked_arguments", "locate"]


def locate(target: str) -> Callable[..., Any]:
    """Return the class or function that a dotted name stands for.

    Hydra's own `instantiate` wraps every error of the callee; here an import that fails inside the module, or a
    ValueError of the net, reaches the caller as it is.

    Raises:
        UserError: no module or no member of that name.
    """
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
        found: Callable[..., Any] = getattr(module, name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise UserError(f"_target_={target}: there is no module {error.name}; correct the config file.") from error
        raise
    except (AttributeError, ValueError) as error:
        raise UserError(f"_target_={target}: {module_name} has no member {name}; correct the config file.") from error
    return found


def checked_arguments(target: Callable[..., Any], given: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Check keyword arguments against a signature and its type hints; lists become tuples where those are wanted.

    Raises:
        UserError: naming the option as `<section>.<argument>`.
    """
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not takes_any and (unknown := [key for key in given if key not in named]):
        raise UserError(f"{section}.{unknown[0]}: there is no such option. {near_matches(unknown[0], named)}")
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in named.items()
    }
    # Field names are the net's own and may begin as pydantic's reserved names do (`model_name`).
    shape = create_model(
        "Arguments", __config__=ConfigDict(arbitrary_types_allowed=True, protected_namespaces=()), **fields
    )
    try:
        checked = shape.model_validate({key: value for key, value in given.items() if key in named})
    except ValidationError as error:
        first = error.errors()[0]
        key = f"{section}.{first['loc'][0]}"
        if first["type"] == "missing":
            raise UserError(f"{key} is missing; give it a value.") from error
        message = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(f"{key}={first['input']!r} is not valid: {message}.") from error
    rest = {key: value for key, value in given.items() if key not in named}
    return {name: getattr(checked, name) for name in named if name in given} | rest
