"""convatlas: the convolutional architectures of a lecture course, trained and compared, each beside its paper."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convatlas.catalogue import create_model as create_model
    from convatlas.catalogue import list_models as list_models
    from convatlas.catalogue import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what builds and lists nets when it is first asked for, so that `import convatlas` takes no time."""
    if name in ("create_model", "list_models", "load"):
        return getattr(importlib.import_module("convatlas.catalogue"), name)
    raise AttributeError(f"module 'convatlas' has no attribute {name!r}")


def _is_entry_point() -> bool:
    """Say whether a command of ours starts: `python -m convatlas.<name>` or `convatlas-<name>`."""
    if sys.argv[:1] == ["-m"]:  # as long as Python looks for the module
        return sys.orig_argv[sys.orig_argv.index("-m") + 1].startswith("convatlas.")
    return sys.argv[0].rpartition(os.sep)[2] in ("convatlas-train", "convatlas-profile")


def _interrupted(_signum: int, _frame: Any) -> None:
    os.write(2, b"convatlas: Interrupted.\n")
    os._exit(130)


# Ctrl-C while a command imports is answered as it is later by `convatlas.core.cli.run`, which replaces this.
if _is_entry_point() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)


def _another_tree_here() -> str | None:
    """Return the source folder of the working directory, where that is a convatlas other than this one.

    Code is taken from the tree that one stands in, as `conf/` is: a DVC experiment in a temporary folder, or a second
    clone with the first one's environment active, must not run the code of the installed folder.
    """
    try:
        source = os.path.join(os.getcwd(), "src")  # noqa: PTH109, PTH118 - every command waits for this; pathlib is slow
        here = os.path.join(source, "convatlas", "__init__.py")  # noqa: PTH118
        other = os.path.isfile(here) and not os.path.samefile(here, __file__)  # noqa: PTH113, PTH121
    except OSError:  # no working directory any more
        return None
    return source if other and sys.path[:1] != [source] else None


if (_source := _another_tree_here()) is not None:
    sys.path.insert(0, _source)
    del sys.modules[__name__]
    importlib.import_module(__name__)  # takes this module's place
