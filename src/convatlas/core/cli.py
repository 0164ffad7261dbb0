"""How every entry point starts and ends: Hydra's command line, and one clear sentence for a person's mistake."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml
from pydantic import ValidationError

from convatlas.core.composing import conf_dir, current_overrides, explain_hydra
from convatlas.core.config import Section, describe
from convatlas.core.errors import UserError, near_matches

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_hydra(main: Callable[[DictConfig], None], config_name: str) -> NoReturn:
    """Run `main` with what Hydra composes from the command line, and exit.

    Hydra's own flags work: `--cfg job` prints the configuration, `--multirun` runs several, `--help` lists the groups.
    """
    import hydra

    def checked_main(config: DictConfig) -> None:
        try:
            main(config)
        except UserError as error:  # leaves at once, before Hydra adds lines of its own
            leave(str(error), 2)

    def compose_and_run() -> None:
        sys.argv[1:] = current_overrides(sys.argv[1:])
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here as they are, not printed by Hydra
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name=config_name)(checked_main)()

    run(compose_and_run, config_name)


def run(main: Callable[[], None], config_name: str = "train") -> NoReturn:
    """Run `main` and exit: 0, 2 for a mistake that the person can mend, 130 when interrupted, 1 for a bug."""
    try:
        _run(main, config_name)
    except SystemExit as end:
        if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("convatlas."):  # no debugger, profiler or test
            _end_at_once(end.code)
        raise


def _end_at_once(code: int | str | None) -> NoReturn:
    """End as an interpreter does, but for freeing a million objects one by one, which takes more than a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else code is not None)


def _run(main: Callable[[], None], config_name: str) -> NoReturn:
    try:
        main()
    except UserError as error:
        leave(str(error), 2)
    except KeyboardInterrupt:
        leave("Interrupted. The same command goes on where the last checkpoint was.", 130)
    except BrokenPipeError:  # the reader of the output has seen enough
        os._exit(0)
    except Exception as error:
        sentence = explain_hydra(error, config_name)  # before the others: Hydra's missing file is an OSError, too
        if sentence is None and isinstance(error, OSError):
            sentence = explain_os_error(error)
        if sentence is not None:
            leave(sentence, 2)
        traceback.print_exc()
        leave("This is a bug in convatlas, not your mistake; the lines above say where.", 1)
    sys.exit(0)


OptionsT = TypeVar("OptionsT", bound=Section)


def read_options(shape: type[OptionsT], arguments: Sequence[str], positional: str | None = None) -> OptionsT:
    """Read `key=value` arguments into a typed section; words without `=` go to the list named `positional`.

    Raises:
        UserError: an option is unknown, missing or of a wrong type.
    """
    values: dict[str, Any] = {}
    known = shape.model_fields
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if positional is not None and (not equals or key not in known):
            values.setdefault(positional, []).append(argument)
        elif key not in known:
            raise UserError(f"{argument}: there is no such option. {near_matches(key, known)}")
        else:
            values[key] = _plain_value(value)
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        raise UserError(describe(error, "the command line")) from error


def _plain_value(text: str) -> Any:
    """Read a value as YAML does, and `a,b` as a list."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text.split(",") if isinstance(value, str) and "," in value else value


def leave(sentence: str, status: int) -> NoReturn:
    """Say one sentence on standard error and exit."""
    print(f"convatlas: {sentence}", file=sys.stderr, flush=True)
    sys.exit(status)


def explain_os_error(error: OSError) -> str | None:
    """Say what to do about a full disk, a missing or a protected file."""
    name = error.filename or "a file"
    if error.errno == errno.ENOSPC:
        return f"No space is left on the disk while writing {name}. Free some and start the same command again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{name} cannot be written or read: {error.strerror}. Change its permissions or choose another folder."
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"{name} does not exist. Correct the path."
    return None
