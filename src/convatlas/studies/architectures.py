"""Architecture files: what a search found, read into the configuration of the run that trains it.

A file's name says nothing of what stands in it. With the architecture itself in the configuration a run is known by
what it trains, an edited file is another run, and a trained net can be built after its file has changed or gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convatlas.core.config import RunConfig
from convatlas.core.files import read_yaml

__all__ = ["found_by_search", "with_architecture"]

SEARCHES = "searches"
"""Where the searches of the pipeline write."""


def with_architecture(config: RunConfig) -> RunConfig:
    """Return a run with the architecture in the place of its file's name; other runs as they are.

    Raises:
        UserError: the file is missing or not YAML.
    """
    file = config.model.get("architecture")
    if not isinstance(file, str):
        return config
    found = read_yaml(Path(file), "run `python -m convatlas.search`, which writes one, or correct model.architecture.")
    if not isinstance(found, Mapping) or not {"family", "net"} <= set(found):
        return config  # the net says what is wrong with its file
    architecture = {key: found[key] for key in ("family", "net")}
    return config.model_copy(update={"model": {**config.model, "architecture": architecture}})


def found_by_search(model: Mapping[str, Any]) -> str | None:
    """Return the architecture file of a searched net if a search of the pipeline writes it; None for other nets."""
    file = model.get("architecture")
    return file if isinstance(file, str) and Path(file).parts[:1] == (SEARCHES,) else None
