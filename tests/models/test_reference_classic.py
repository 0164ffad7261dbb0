"""Parameters and multiply-adds of the nets from LeNet-5 to Xception against published references."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from convatlas.models.build import build_model
from convatlas.models.costs import measure_costs, on_meta_device

ROWS = json.loads(Path(__file__).with_name("reference_classic.json").read_text())
CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["overrides"])
def test_costs_are_the_reference_s(row):
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        composed = compose(config_name="profile", overrides=row["overrides"].split())
    model = OmegaConf.to_container(composed.model, resolve=True)
    costs = measure_costs(on_meta_device(lambda: build_model(model)), row["input_size"])
    assert costs.parameters == row["parameters"]
    assert costs.macs == pytest.approx(row["macs"], rel=1e-3)
