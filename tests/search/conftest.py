"""Small searches composed from conf/ as a person would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose
from omegaconf import OmegaConf

from convatlas.core.composing import hydra_ready
from convatlas.core.files import write_json
from convatlas.search.config import SearchRun, read_search
from convatlas.search.data import SearchData
from convatlas.search.latency import LatencyTable, space_digest, this_machine
from convatlas.search.spaces import FBNetSpace, make_space
from convatlas.search.strategy import Context

TINY = {
    "all": [
        "tracking=none",
        "search.finals.seeds=[]",
        "search.proxy.epochs=1",
        "search.proxy.batch_size=256",
        "search.random_beside=false",
        "data.image_size=16",
    ],
    "fbnet_dnas": [
        "search.strategy.epochs=2",
        "search.strategy.frozen_epochs=1",
        "search.strategy.batch_size=128",
        "search.strategy.samples=2",
        "search.space.stages=[{channels: 8, layers: 2, stride: 2}]",
        "search.space.candidates=[k3_e1, k3_e3, k5_e1_g2, skip]",
        "search.space.head_channels=16",
    ],
    "nasnet_rl": [
        "search.strategy.updates=2",
        "search.strategy.controller.minibatch=2",
        "search.space.blocks=2",
        "search.space.filters=4",
        "search.space.operations=[identity, average_3x3, conv_1x1]",
    ],
    "enas": [
        "search.strategy.epochs=2",
        "search.strategy.batch_size=256",
        "search.strategy.updates_per_epoch=1",
        "search.strategy.controller.minibatch=2",
        "search.strategy.samples=2",
        "search.strategy.finalists=1",
        "search.space.blocks=2",
        "search.space.filters=4",
        "search.space.operations=[identity, average_3x3]",
    ],
    "darts": [
        "search.strategy.epochs=2",
        "search.strategy.batch_size=256",
        "search.space.channels=4",
        "search.space.operations=[skip_connect, avg_pool_3x3]",
    ],
    "compound_scaling": [
        "search.strategy.step=0.5",
        "search.strategy.tolerance=0.3",
        "search.strategy.baseline.repeats=[1, 1, 1, 1, 1, 1, 1]",
        "search.proxy.batch_size=512",
    ],
    "random": [
        "search.strategy.trials=2",
        "search.space.stages=[{channels: 8, layers: 2, stride: 2}]",
        "search.space.head_channels=16",
    ],
}

Search = Callable[..., SearchRun]


def made_table(space: FBNetSpace) -> LatencyTable:
    """Make a table in which a larger operator takes longer, without measuring anything."""
    times = {"stem": 10.0, "head": 20.0}
    for layer in space.layers:
        for name in layer.candidates:
            times[layer.operator(name)] = 1.0 + 10 * len(name) + 100 * name.count("e6") + 50 * name.count("e3")
    return LatencyTable(this_machine(torch.device("cpu")), space_digest(space, 1, 10), times)


@pytest.fixture
def search(prepared_digits: Path, tmp_path: Path) -> Search:
    """Compose a search that takes a second and tracks nothing; one over FBNet's space has a made table of latencies."""

    def search(name: str, *overrides: str, folder: str = "out") -> SearchRun:
        torch.set_num_threads(1)
        table = tmp_path / "latency.json"
        paths = [f"data.prepared={prepared_digits}", f"output_dir={tmp_path / folder}", f"work_dir={tmp_path / 'work'}"]
        if name in {"fbnet_dnas", "random"}:
            paths.append(f"search.latency.table={table}")
        given = {override.partition("=")[0] for override in overrides}
        tiny = {o.partition("=")[0]: o for o in [*TINY["all"], *TINY[name]]}
        kept = [override for key, override in tiny.items() if not any(key.startswith(word) for word in given)]
        with hydra_ready():
            composed: Any = OmegaConf.to_container(
                compose("search", [f"search={name}", *kept, *paths, *overrides]), resolve=True
            )
        composed.pop("hydra", None)
        run = read_search(composed)
        if run.search.latency is not None and not table.exists():
            space = make_space(run.search.space, run.data.image_size)
            made = made_table(space)
            values = {"machine": made.machine, "space": made.space, "microseconds": made.microseconds}
            write_json(table, values)
        return run

    return search


@pytest.fixture
def context(search: Search) -> Callable[..., Context]:
    """Make what a strategy is given."""

    def context(name: str, *overrides: str) -> Context:
        run = search(name, *overrides)
        space = make_space(run.search.space, run.data.image_size) if run.search.space else None
        table = made_table(space) if isinstance(space, FBNetSpace) else None
        data = SearchData(run.data, run.recipe, run.search.weights_share, run.seed)
        return Context(run, data, torch.device("cpu"), space, table)

    return context
