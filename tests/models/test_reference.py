"""Parameters and multiply-adds of the nets against published references; one `reference_*.json` a group of families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

from convatlas.core.composing import hydra_ready
from convatlas.models.build import build_model
from convatlas.models.costs import count_parameters, on_meta_device
from helpers import macs_of

ROWS = [row for file in sorted(Path(__file__).parent.glob("reference_*.json")) for row in json.loads(file.read_text())]


FIRST = [
    next(row for row in ROWS if row["overrides"].split()[0] == net) for net in {r["overrides"].split()[0] for r in ROWS}
]
"""One row of each net; the others are for the slow tests."""


def name_of(row):
    """Name a test by its row."""
    return f"{row['overrides']} {row['input_size'][-1]}"


@pytest.mark.parametrize(
    "row", [row if row in FIRST else pytest.param(row, marks=pytest.mark.slow) for row in ROWS], ids=name_of
)
def test_costs_are_the_references(row):
    with hydra_ready():
        composed = compose(config_name="profile", overrides=row["overrides"].split())
    model = OmegaConf.to_container(composed.model, resolve=True)
    net = on_meta_device(lambda: build_model(model))
    assert count_parameters(net) == row["parameters"]
    if row["macs"] is not None:
        assert macs_of(net, row["input_size"]) == pytest.approx(row["macs"], rel=1e-3)
