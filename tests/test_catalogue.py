"""Nets by name from Python: `convatlas.create_model` and `convatlas.list_models`."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import convatlas
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
