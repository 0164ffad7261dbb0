"""The anatomies of all nets, drawn again where something changed.

Each is kept in `.work/atlas/<net>.json` with a fingerprint of the net's code, its configuration and the code that
draws, so that a changed net is drawn again and no other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from convatlas.core.digests import digest
from convatlas.core.files import write_json
from convatlas.core.processes import serve_parent, while_forking
from convatlas.core.source_code import PACKAGE, Code, code_behind

__all__ = ["KEPT", "anatomies", "fingerprints"]

KEPT = Path(".work", "atlas")
LIBRARIES = ("torch", "torchvision", "timm", "pygraphviz")

Plain = dict[str, Any]
"""Values as JSON has them."""


def anatomies(nets: Mapping[str, Plain], kept: Path = KEPT, processes: int = 2) -> dict[str, Plain]:
    """Return the anatomy of every net, from `kept` where neither the net nor what draws it has changed.

    Args:
        nets: the sections `about` and `model` of each net, by name.
        kept: the folder of what was drawn before.
        processes: how many draw at once.
    """
    keys = fingerprints(nets)
    found = {name: before for name, key in keys.items() if (before := _read(kept / f"{name}.json", key)) is not None}
    missing = {name: net for name, net in nets.items() if name not in found}
    if missing:
        from convatlas.atlas.anatomy import anatomy  # torch and all the rest, once, before the processes are forked

        with ProcessPoolExecutor(processes, get_context("fork"), serve_parent) as pool:
            with while_forking():
                drawings = pool.map(anatomy, missing.values())
            for name, drawn in zip(missing, drawings, strict=True):
                write_json(kept / f"{name}.json", {"key": keys[name], "anatomy": drawn})
                found[name] = drawn
    return {name: found[name] for name in nets}


def fingerprints(nets: Mapping[str, Plain]) -> dict[str, str]:
    """Return what decides the drawings of each net: its configuration, its code, and the code that draws."""
    return {name: digest({"net": net, "code": _code(net["model"]["_target_"]).plain()}) for name, net in nets.items()}


@cache
def _code(target: str) -> Code:
    entry = PACKAGE / "atlas" / "anatomy.py"
    return code_behind([entry], [target], counted=("atlas", "models"), libraries=LIBRARIES)


def _read(file: Path, key: str) -> Plain | None:
    """Return what was kept under a key; None where there is none, or not readable."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return dict(kept["anatomy"])
    return None
