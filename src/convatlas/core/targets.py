"""From a dotted name and arguments in a configuration to the object they stand for."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from convatlas.core.errors import UserError, near_matches

__all__ = ["Keywords", "checked_arguments", "keywords_of", "locate"]


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

    What another package's code is given is checked by name alone; it may have no type hints, or loose ones.

    Raises:
        UserError: naming the option as `<section>.<argument>`.
    """
    keywords = keywords_of(target)
    named = keywords.named
    if not keywords.takes_any and (unknown := [key for key in given if key not in named]):
        raise UserError(f"{section}.{unknown[0]}: there is no such option. {near_matches(unknown[0], named)}")
    if missing := [key for key in keywords.required if key not in given]:
        raise UserError(f"{section}.{missing[0]} is missing; give it a value.")
    if not getattr(target, "__module__", "").startswith("convatlas."):
        return dict(given)
    return {key: _checked(value, named.get(key, Any), f"{section}.{key}") for key, value in given.items()}


@dataclass(frozen=True)
class Keywords:
    """The keyword arguments of a function or class.

    Attributes:
        named: type hints by name, also those of `**options: Unpack[...]`.
        required: names without a default.
        takes_any: any other name is taken, too.
    """

    named: dict[str, Any]
    required: tuple[str, ...]
    takes_any: bool


def keywords_of(target: Callable[..., Any]) -> Keywords:
    """Return the keyword arguments of a function or class."""
    parameters = inspect.signature(target).parameters.values()
    own = getattr(target, "__module__", "").startswith("convatlas.")
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target) if own else {}
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    named = {p.name: hints.get(p.name, Any) for p in by_name}
    rest = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
    options = hints.get(rest.name) if rest is not None else None
    if typing.get_origin(options) is typing.Unpack:
        named |= typing.get_type_hints(typing.get_args(options)[0])
        rest = None
    return Keywords(named, tuple(p.name for p in by_name if p.default is p.empty), rest is not None)


def _checked(value: Any, hint: Any, key: str) -> Any:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(f"{key}={first['input']!r} is not valid: {message}.") from error
