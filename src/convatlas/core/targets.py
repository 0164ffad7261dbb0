"""From a `_target_` and its arguments in a configuration to the object they stand for.

What a user names on the command line or in a folder of their own is theirs. What is read from a run's folder or from a
plan may come from elsewhere: `check_trusted` lets it name only what the known libraries have for this purpose, and is
called before anything is built.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from convatlas.core.errors import UserError, near_matches

__all__ = [
    "Keywords",
    "build",
    "check_trusted",
    "checked_arguments",
    "factory",
    "keywords_of",
    "locate",
    "named",
    "user_errors",
]

KNOWN = ("convatlas", "lightning", "pytorch_lightning", "timm", "torch", "torchmetrics", "torchvision")
"""The packages whose classes a run's files may name."""
OURS = ("convatlas.data.sources.", "convatlas.models.", "convatlas.tasks.")
"""Where those of this project may come from."""
BUILDERS = {"timm.create_model", "torchvision.models.get_model"}
"""Functions that may be named beside the nets of timm and torchvision: others could run any program."""
EXTRAS = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}
"""The extra of pyproject.toml that brings what a class needs."""
TRUST = "CONVATLAS_TRUST"
"""Environment variable: further packages, separated by commas, that a user allows."""


def locate(target: Any, key: str = "_target_") -> Callable[..., Any]:
    """Return the class or function that a dotted name stands for.

    Raises:
        UserError: no module or no member of that name, or the module needs a package that is not installed; the
            message names `key`.
    """
    parts = str(target).split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{key}={target} is no dotted name of a class or function; correct the config file.")
    module: Any = None
    taken = 0
    while taken < len(parts):
        name = ".".join(parts[: taken + 1])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise UserError(f"{key}={target} needs the package {error.name}; install it.") from error
            break
        except ImportError as error:
            raise UserError(f"{key}={target} cannot be imported ({error}); correct it or its package.") from error
        taken += 1
    if module is None:
        raise UserError(f"{key}={target}: there is no module {parts[0]}; install it, or correct the config file.")
    found = module
    for number, part in enumerate(parts[taken:], start=taken):
        if not hasattr(found, part):
            where = ".".join(parts[:number])
            raise UserError(f"{key}={target}: {where} has no member {part}. {near_matches(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{key}={target} is no class or function; correct the config file.")
    return typing.cast("Callable[..., Any]", found)


def factory(section: Mapping[str, Any], key: str) -> Callable[..., Any]:
    """Return what Hydra's `instantiate` makes of a section, waiting for the arguments that only the program knows.

    Sections nested in it are built at once.

    Args:
        section: `_target_` and arguments.
        key: where the section stands in the configuration, for messages.

    Raises:
        UserError: there is no `_target_`, or it does not exist. What is returned raises it, too: for an argument that
            the target does not take, and where a class of another package refuses a value.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if not isinstance(section.get("_target_"), str):
        raise UserError(f"{key} has no _target_; name the class that it stands for.")
    name = section["_target_"]
    target = locate(name, f"{key}._target_")
    for inner, nested in _nested(section, key):
        locate(nested["_target_"], f"{inner}._target_")
        _check_names(locate(nested["_target_"]), [k for k in nested if not k.startswith("_")], inner)
    _check_names(target, [k for k in section if not k.startswith("_")], key)
    try:
        partial = instantiate({**section, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise UserError(f"{key}: {name} cannot be built ({_one_line(cause)}); correct its arguments.") from error

    @functools.wraps(target, updated=())
    def construct(*arguments: Any, **options: Any) -> Any:
        try:
            return partial(*arguments, **options)
        except UserError:
            raise
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(target.__name__)
            remedy = f"`pip install 'convatlas[{extra}]'` adds it" if extra else "install it"
            raise UserError(f"{key}: {name} needs a package ({error.name or _one_line(error)}); {remedy}.") from error
        except Exception as error:
            if _is_ours(target) and not isinstance(error, (TypeError, ValueError)):
                raise
            raise UserError(f"{key}: {name} refuses its arguments ({_one_line(error)}); correct them.") from error

    return construct


def build(section: Mapping[str, Any], key: str, *arguments: Any, **options: Any) -> Any:
    """Build the object of a section; see `factory`."""
    return factory(section, key)(*arguments, **options)


def _nested(section: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return the sections with a `_target_` inside a section, with their keys."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            if isinstance(value.get("_target_"), str):
                yield f"{key}.{name}", value
            yield from _nested(value, f"{key}.{name}")
        elif isinstance(value, (list, tuple)):
            yield from _nested({str(number): each for number, each in enumerate(value)}, f"{key}.{name}")


def _check_names(target: Callable[..., Any], names: list[str], key: str) -> None:
    try:
        keywords = keywords_of(target)
    except (TypeError, ValueError):  # a class of C without a signature checks itself
        return
    for name in () if keywords.takes_any else names:
        if name not in keywords.named:
            raise UserError(
                f"{key}.{name}: {getattr(target, '__qualname__', target)} has no such argument. "
                f"{near_matches(name, keywords.named)} To leave it out: ~{key}.{name}."
            )


def _is_ours(target: Callable[..., Any]) -> bool:
    return str(getattr(target, "__module__", "")).partition(".")[0] == "convatlas"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# ---- exceptions in the user's objects ------------------------------------------------------------------------------


def named(theirs: Any, key: str) -> Any:
    """Mark an object of the user with its key in the configuration, for `user_errors`."""
    theirs.configured_as = key
    return theirs


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn an exception inside an object that the user added (see `named`) into a sentence that names it.

    Raises:
        UserError: such an exception; others are left as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (key := _raised_in(error)) is None:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        what = f"{key} raised {type(error).__name__} in {where} ({_one_line(error)})"
        raise UserError(f"{what}; correct it, or leave it out.") from error


def _raised_in(error: BaseException) -> str | None:
    """Return the key of the outermost object of the user in whose method an exception was raised."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        key = getattr(frame.f_locals.get("self"), "configured_as", None)
        if isinstance(key, str):
            return key
    return None


# ---- what comes from elsewhere --------------------------------------------------------------------------------------


def check_trusted(values: Any, source: str, allowed: tuple[str, ...] = ()) -> None:
    """Check that every `_target_` in values read from a file names what a run may be made of.

    Args:
        values: plain values, nested.
        source: the file, for the message.
        allowed: packages that the user allows beside the known ones and those of CONVATLAS_TRUST.

    Raises:
        UserError: a `_target_` is of another package, or a function that is not for building nets or data; or a text
            is an interpolation, which could stand for one. Nothing of another package is imported before.
    """
    if (text := next((each for each in _texts(values) if "${" in each), None)) is not None:
        raise UserError(f"{source} holds {text}, an interpolation; write the value that it stands for.")
    further = {*allowed, *filter(None, os.environ.get(TRUST, "").split(","))}
    for key, section in _nested({"": values}, ""):
        target = section["_target_"]
        package = target.partition(".")[0]
        if package in further:
            continue
        if package not in KNOWN or not _is_building_block(target):
            raise UserError(
                f"{source}: {key.strip('.')}._target_={target} is not of a known library, and could run any program. "
                f"If you trust this file, allow it: {TRUST}={package}."
            )


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, (Mapping, list, tuple)):
        for each in (values, values.values()) if isinstance(values, Mapping) else (values,):
            for value in each:
                yield from _texts(value)


def _is_building_block(target: str) -> bool:
    """Say whether a name of a known library is a class for trainings, or a function that builds nets or data."""
    import pytorch_lightning as pl
    import timm
    import torch
    import torchvision
    from pytorch_lightning.loggers import Logger
    from torch.optim.lr_scheduler import LRScheduler

    found: Any = locate(target)
    module = str(getattr(found, "__module__", ""))
    if module.partition(".")[0] not in KNOWN:  # something that a known module merely imports, such as torch.os.system
        return False
    if module.startswith("convatlas."):
        return f"{module}.".startswith(OURS)
    if inspect.isclass(found):
        bases = (torch.nn.Module, torch.optim.Optimizer, LRScheduler, pl.Callback, pl.LightningDataModule, Logger)
        return issubclass(found, bases) or module.startswith("timm.scheduler.")
    package, name = module.partition(".")[0], found.__name__
    is_net = timm.is_model(name) if package == "timm" else name in torchvision.models.list_models()
    return target in BUILDERS or (is_net and module.startswith(f"{package}.models."))


# ---- arguments of nets ----------------------------------------------------------------------------------------------


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
