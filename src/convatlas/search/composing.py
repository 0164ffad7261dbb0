"""A search as a plan holds it: its whole configuration, and the fingerprints of the code that decides its result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.composing import composed_net, conf_dir
from convatlas.core.errors import UserError, near_matches
from convatlas.core.source_code import DECIDING, PACKAGE, Code, code_behind, targets_in
from convatlas.core.unused import check_trainer_used
from convatlas.search.config import SearchRun, read_search
from convatlas.studies.architectures import found_by_search

if TYPE_CHECKING:
    from omegaconf import DictConfig


def search_run(config: DictConfig) -> SearchRun:
    """Check what Hydra composed from `conf/search.yaml`, and give the search a folder where it has none."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=True)
    plain.pop("hydra", None)
    if plain["output_dir"] is None:
        plain["output_dir"] = f"searches/{plain['search']['name']}"
    checked = read_search(plain)
    check_trainer_used(checked.trainer)
    return checked


def compose_search(name: str) -> SearchRun:
    """Compose the search of `conf/search/<name>.yaml` inside `hydra_ready`."""
    from hydra import compose

    return search_run(compose("search", [f"search={name}"]))


def planned_search(run: SearchRun) -> dict[str, Any]:
    """Return what `plan/searches/<name>.yaml` holds, inside `hydra_ready`: a change of it runs the search again."""
    compared = compared_nets(run)
    return {"config": run.model_dump(mode="json"), "compared": compared, **search_code(compared).plain()}


def compared_nets(run: SearchRun) -> dict[str, dict[str, Any]]:
    """Compose the nets that are trained beside what is found, by name, inside `hydra_ready`."""
    return {name: composed_net(overrides) for name, overrides in run.search.finals.compared.items()}


def search_code(compared: dict[str, dict[str, Any]]) -> Code:
    """Return the code that decides the result of a search; what only shows it is left out."""
    search = PACKAGE / "search"
    return code_behind(
        [search / "__main__.py", PACKAGE / "core" / "seeds.py"],
        targets_in(compared),
        counted=("models", "tasks", "data", "training", "search", "core/seeds.py"),
        left_out=[search / name for name in ("outcome.py", "drawing.py", "tracking.py")],
        libraries=DECIDING,
    )


def searches_for(names: Iterable[str], models: Iterable[Mapping[str, Any]]) -> dict[str, SearchRun]:
    """Compose the searches of a plan inside `hydra_ready`: those named, and those whose findings are trained.

    Raises:
        UserError: there is no search of that name.
    """
    known = sorted(path.stem for path in (conf_dir() / "search").glob("*.yaml"))
    needed = [Path(file).parts[1] for model in models if (file := found_by_search(model))]
    searches = {}
    for name in dict.fromkeys([*names, *needed]):
        if name not in known:
            raise UserError(f"search={name}: there is no such search. {near_matches(name, known)}")
        searches[name] = compose_search(name)
    return searches
