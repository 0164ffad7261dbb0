"""Nets by name from Python: `convatlas.create_model` and `convatlas.list_models`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import convatlas
from convatlas import catalogue
from convatlas.catalogue import Counted
from convatlas.core.composing import composed_net, hydra_ready
from convatlas.models.build import build_model
from helpers import ROOT


def test_all_files_are_listed_and_some_by_a_pattern():
    assert convatlas.list_models() == sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
    assert convatlas.list_models("fractal*34") == ["fractalnet34"]
    assert convatlas.list_models("unet*", task="segmentation") == ["unet", "unet_padded", "unet_small"]
    assert convatlas.list_models("unet*", task="detection") == []


def test_a_net_has_the_arguments_of_its_file_and_those_given():
    torch.manual_seed(0)
    net = convatlas.create_model("revnet_small", num_classes=7, depth=38)
    torch.manual_seed(0)
    with hydra_ready():
        same = build_model(composed_net(["model=revnet_small", "model.num_classes=7", "model.depth=38"])["model"])
    states = net.state_dict(), same.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("revnet_cifr", {}, r"^revnet_cifr: there is no such net\. Did you mean revnet_cifar"),
        ("../model/lenet5", {}, "there is no such net"),
        ("revnet_cifar", {"dept": 38}, r"^model\.dept: there is no such option\. Did you mean depth"),
        ("revnet_cifar", {"depth": 37}, r"^model\.depth=37 .*38"),
        ("revnet_cifar", {"depth": "deep"}, r"^model\.depth='deep' is not valid"),
    ],
)
def test_what_is_wrong_is_a_value_error_with_the_remedy(name, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        convatlas.create_model(name, **arguments)


def test_there_is_nothing_else():
    with pytest.raises(AttributeError, match="create_modl"):
        _ = convatlas.create_modl


def test_a_program_that_uses_hydra_itself_finds_it_as_it_was():
    GlobalHydra.instance().clear()
    marker = object()
    GlobalHydra.instance().hydra = marker  # type: ignore[assignment]
    try:
        convatlas.create_model("lenet5")
        assert GlobalHydra.instance().hydra is marker
    finally:
        GlobalHydra.instance().clear()


def test_importing_the_package_imports_nothing_of_size():
    program = "import sys, convatlas; print({'torch', 'hydra', 'pydantic', 'yaml'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "set()\n"


def test_counts_are_kept_until_the_net_changes(tmp_path, monkeypatch):
    counted = Counted(tmp_path / "costs.json")
    first = counted.of("lenet5")
    assert first == {"parameters": 60_000, "macs": first["macs"]}
    counted.keep()
    asked = []
    monkeypatch.setattr(catalogue, "count", lambda name, _size: asked.append(name) or {"parameters": 1, "macs": 2})
    assert Counted(tmp_path / "costs.json").of("lenet5") == first
    kept = json.loads((tmp_path / "costs.json").read_text())
    kept["lenet5"]["key"] = "of another version"
    (tmp_path / "costs.json").write_text(json.dumps(kept))
    assert Counted(tmp_path / "costs.json").of("lenet5") == {"parameters": 1, "macs": 2}
    assert asked == ["lenet5"]
