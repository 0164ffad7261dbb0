"""How every entry point starts and ends: Hydra's command line, and one clear sentence for a user's mistake."""

from __future__ import annotations

import ast
import atexit
import errno
import inspect
import io
import json
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml
from pydantic import ValidationError

from convatlas.core.answers import QUIET_FLAGS
from convatlas.core.composing import (
    as_hydra_reads,
    conf_dir,
    current_overrides,
    explain_hydra,
    flags_and_overrides,
    user_dir,
)
from convatlas.core.config import Section, describe, types_in
from convatlas.core.errors import UserError, near_matches
from convatlas.core.files import full_disk
from convatlas.core.passwords import hide_passwords, without_password
from convatlas.core.processes import end_on_signals, ending_signal

if TYPE_CHECKING:
    from omegaconf import DictConfig


GOES_ON = "The same command goes on from the last checkpoint."


def run_hydra(
    main: Callable[[DictConfig], Any],
    config_name: str,
    *,
    interrupted: str = "",
    finish: Callable[[list[tuple[str, Any]]], None] | None = None,
) -> NoReturn:
    """Run `main` with what Hydra composes from the command line, and exit.

    Hydra's own flags work: `--cfg job` prints the configuration, `--multirun` runs several, `--help` lists the groups.
    The jobs of a `--multirun` after one that fails still run; the end lists those that failed.

    Args:
        main: the entry point.
        config_name: its file in `conf/`.
        interrupted: what follows "Interrupted." when the user pressed Ctrl-C.
        finish: called at the end with what `main` returned, and of each job of a `--multirun` its overrides; jobs that
            another launcher ran in processes of its own are not among them.
    """
    failed: list[str] = []
    returned: list[tuple[str, Any]] = []

    def checked_main(config: DictConfig) -> None:
        job = _job_of_multirun()
        try:
            returned.append((job or "", main(config)))
        except BrokenPipeError:  # the reader of the output has seen enough, of which Hydra would make an error
            os._exit(0)
        except Exception as error:
            if ending_signal() is not None:
                raise
            if job is not None:
                failed.append(job)
                _explain(error, config_name)
            elif isinstance(error, (UserError, OSError)) and not _is_multirun():  # before Hydra adds lines of its own
                sys.exit(_explain(error, config_name))
            else:
                raise

    def compose_and_run() -> None:
        import hydra  # here, where Ctrl-C is answered: it takes a while

        user_dir(sys.argv[1:])  # where it is not there, Hydra's own error has no remedy
        flags, overrides = flags_and_overrides(sys.argv[1:])
        # Flags last: one whose value may be left out would take an override for it.
        sys.argv[1:] = [*current_overrides([*map(as_hydra_reads, overrides)]), *flags]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here as they are, not printed by Hydra
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name=config_name)(checked_main)()
        if finish is not None and returned:
            finish(returned)
        if failed:
            leave(f"{len(failed)} of the jobs failed: {'; '.join(failed)}.", 2)

    run(compose_and_run, config_name, interrupted=interrupted)


def _is_multirun() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.get().mode is RunMode.MULTIRUN


def _job_of_multirun() -> str | None:
    """Return the overrides of a job that Hydra's own launcher runs after others in this process; None elsewhere."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    if not _is_multirun() or not hydra.launcher["_target_"].endswith(".BasicLauncher"):
        return None
    return " ".join(hydra.overrides.task)


def run(main: Callable[[], None], config_name: str = "train", *, interrupted: str = "") -> NoReturn:
    """Run `main` and exit: 0, 2 for a mistake that the user can mend, 130 when interrupted, 1 for a bug.

    Args:
        main: the entry point.
        config_name: the file of `conf/` whose options a message proposes.
        interrupted: what follows "Interrupted." when the user pressed Ctrl-C.
    """
    end_on_signals()
    sys.argv[1:] = hide_passwords(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that a terminal cannot show costs no run
            stream.reconfigure(errors="backslashreplace")
    try:
        _run(main, config_name, interrupted)
    except SystemExit as end:
        program = sys.orig_argv[2] if sys.orig_argv[1:2] == ["-m"] else Path(*sys.orig_argv[1:2]).name
        if re.match(r"convatlas(\.|-|$)", program):  # no debugger, profiler or test
            _end_at_once(end.code)
        raise


def _end_at_once(code: int | str | None) -> NoReturn:
    """End as an interpreter does, but for freeing a million objects one by one, which takes more than a second."""
    try:
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # a second Ctrl-C
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else code is not None)


def _run(main: Callable[[], None], config_name: str, interrupted: str) -> NoReturn:
    try:
        main()
    except BrokenPipeError:  # the reader of the output has seen enough
        os._exit(0)
    except (KeyboardInterrupt, SystemExit) as end:
        if not _is_interrupt(end):
            raise
        leave(f"Interrupted. {interrupted}".strip(), 130)
    except Exception as error:
        received = ending_signal()  # a library may have made an error of its own of it
        if received == signal.SIGINT:
            leave(f"Interrupted. {interrupted}".strip(), 130)
        sys.exit(_explain(error, config_name) if received is None else 128 + received)
    sys.exit(0)


def _is_interrupt(end: BaseException) -> bool:
    """Say whether Ctrl-C is behind the end of the process: Lightning answers it with `sys.exit(1)`."""
    return isinstance(end, KeyboardInterrupt) or (end.args == (1,) and isinstance(end.__context__, KeyboardInterrupt))


def _explain(error: Exception, config_name: str) -> int:
    """Print one sentence for what the user can mend, or the traceback of a bug; returns the exit status."""
    sentence: str | None = str(error)
    if not isinstance(error, UserError):
        sentence = explain_hydra(error, config_name)  # before the others: Hydra's missing file is an OSError, too
        sentence = sentence or explain_memory(error)
        system = full_disk(error) or error
        if sentence is None and isinstance(system, OSError):
            sentence = explain_os_error(system)
    if sentence is not None:
        print_message(sentence)
        return 2
    print(without_password(traceback.format_exc()), end="", file=sys.stderr)
    print_message("This is a bug in convatlas, not your mistake; the lines above say where.")
    return 1


OptionsT = TypeVar("OptionsT", bound=Section)


def read_options(shape: type[OptionsT], arguments: Sequence[str], positional: str | None = None) -> OptionsT:
    """Read `key=value` arguments into a typed section; words without `=` go to the list named `positional`.

    Asked for `--help`, it prints what the command does and its options, and exits.

    Raises:
        UserError: an option is unknown, missing, given twice or of a wrong type.
    """
    if {"-h", "--help"} & set(arguments):
        print(help_text(shape))
        sys.exit(0)
    values: dict[str, Any] = {}
    known = shape.model_fields
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument in QUIET_FLAGS and "quiet" in known:
            key, equals, value = "quiet", "=", "true"
        if not argument:
            raise UserError("One of the arguments is empty; leave it out, or name what it stands for.")
        if key in values and key != positional:
            raise UserError(f"{key} is given twice; give one value.")
        if positional is not None and (not equals or key not in known):
            values.setdefault(positional, []).append(argument)
        elif key == positional:
            values.setdefault(positional, []).extend(split_list(value))
        elif key not in known:
            raise UserError(f"{argument}: there is no such option. {near_matches(key, known)}")
        else:
            values[key] = _plain_value(value, known[key].annotation)
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        raise UserError(describe(error, "the command line")) from error


def help_text(shape: type[Section]) -> str:
    """Return the words at the head of an entry point's file, and its options with what the class says of them."""
    fields = ast.parse(inspect.getsource(shape)).body[0].body  # type: ignore[attr-defined]
    said = {
        field.target.id: inspect.cleandoc(str(text.value.value))
        for field, text in pairwise(fields)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
    lines = [inspect.cleandoc(sys.modules[shape.__module__].__doc__ or ""), "", "options:"]
    for name, field in shape.model_fields.items():
        kinds = [getattr(kind, "__name__", "") for kind in types_in(field.annotation)]
        kind = "|".join(choices_of(field.annotation)) or next((k.lower() for k in kinds if k in _SHOWN), "value")
        needed = "needed" if field.is_required() else f"default {json.dumps(field.default, default=str)}"
        lines.append(f"  {name}={kind:<{max(1, 24 - len(name))}} {needed}")
        lines += [f"      {line}" for line in said.get(name, "").splitlines()]
    return "\n".join(lines)


_SHOWN = {"list", "Path", "int", "float", "str"}


def choices_of(annotation: Any) -> list[str]:
    """Return the values that an option may have, where they can be listed."""
    kinds = [*types_in(annotation)]
    listed = [kind for kind in kinds if isinstance(kind, str)]
    return ["true", "false"] if bool in kinds and not listed else listed


def _plain_value(text: str, annotation: Any) -> Any:
    """Read a value as its option's type wants it: texts and paths as they are, lists split at their own commas."""
    types = list(types_in(annotation))
    if list in types:
        return split_list(text)
    if not any(kind in types for kind in (int, float, bool)):
        return None if text == "null" else text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return text


def split_list(text: str) -> list[str]:
    """Split `a,b` or `[a,b]` at the commas that lie outside of brackets and quotes."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "[({") - (letter in "])}") if not quote else 0
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def print_message(sentence: str) -> None:
    """Print one sentence on standard error."""
    print(f"convatlas: {without_password(sentence)}", file=sys.stderr, flush=True)


def leave(sentence: str, status: int) -> NoReturn:
    """Print one sentence on standard error and exit."""
    print_message(sentence)
    sys.exit(status)


def explain_memory(error: Exception) -> str | None:
    """Return what to do where the memory of the machine or of a GPU does not suffice."""
    text = str(error).splitlines()[0] if str(error) else ""
    if not isinstance(error, MemoryError) and not re.search(
        r"(?i)out of memory|can't allocate memory|Storage size calculation overflowed", text
    ):
        return None
    return f"The memory does not suffice ({text or 'MemoryError'}). Choose smaller images, batches or a smaller net."


def explain_os_error(error: OSError) -> str | None:
    """Return what to do about a full disk, a missing or a protected file."""
    name = re.sub(r"\.([^/]+)\.\d+\.(tmp|partial)$", r"\1", str(error.filename2 or error.filename or "a file"))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"No space is left on the disk while writing {name}. Free some and start the same command again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{name} cannot be written or read: {error.strerror}. Change its permissions or choose another folder."
    if error.errno in (errno.EEXIST, errno.EISDIR):
        return f"{name} is {'a folder' if Path(name).is_dir() else 'there already, and no folder'}; name another."
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"{name} does not exist. Correct the path."
    return None
