"""From a file of conf/model to a net: by Hydra's `instantiate`, by the product, and from Python."""

from __future__ import annotations

import shutil
from typing import Any

import hydra
import pytest
import torch
from hydra import compose
from omegaconf import DictConfig
from torch import nn

from convatlas.core.composing import compose_run, composed_net, current_overrides, hydra_ready
from convatlas.core.errors import UserError
from convatlas.core.older import upgraded
from convatlas.models.build import build_model
from convatlas.models.costs import on_meta_device
from helpers import ROOT

NAMES = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
EQUAL = [  # lists, nested lists and mappings among their arguments
    "alexnet_small",
    "csp_pan_yolo_small",
    "densenet121_small",
    "efficientnet_small",
    "fbnet_small",
    "fractalnet_small",
    "mobilenet_v2_ssdlite_small",
    "nasnet_small",
    "resnet50_small",
    "revnet_small",
    "searched",
    "spinenet_small",
    "unet_small",
]


class Foreign(nn.Module):
    """A net as another package may write it: no type hints, keywords of any name."""

    def __init__(self, num_classes, in_channels=3, json=None, _width=4, widths: nn.Module = None):
        super().__init__()
        self.given = (json, _width, widths)
        self.head = nn.Linear(in_channels, num_classes)


FOREIGN = {"_target_": f"{__name__}.Foreign", "num_classes": 5}


def composed(config_name: str, name: str, *overrides: str) -> DictConfig:
    with hydra_ready():
        return compose(config_name, [f"model={name}", *overrides])


@pytest.mark.parametrize("name", NAMES)
def test_hydra_instantiates_every_net(name):
    alone = composed("profile", name)
    net = on_meta_device(lambda: hydra.utils.instantiate(alone.model))
    assert sum(parameter.numel() for parameter in net.parameters()) > 0


@pytest.mark.parametrize(
    "name", [name if name in NAMES[::6] else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_run_adds_to_a_net_what_the_data_say(name):
    alone = composed("profile", name)
    channels, _, side = alone.about.input_size
    run = composed("train", name, f"data.image_size={side}", f"data.in_channels={channels}").model
    from_data = {"num_classes", "in_channels", "image_size", "architecture"}
    assert set(run) == set(alone.model)
    assert {k: v for k, v in run.items() if k not in from_data} == {
        k: v for k, v in alone.model.items() if k not in from_data
    }


@pytest.mark.parametrize("name", [*EQUAL, "saunet_small", "lstm"])
def test_hydra_instantiates_the_net_of_a_run(name):
    channels, _, side = composed("profile", name).about.input_size
    run = composed("train", name, f"data.image_size={side}", f"data.in_channels={channels}", "data.num_classes=3")
    assert isinstance(on_meta_device(lambda: hydra.utils.instantiate(run.model)), nn.Module)


@pytest.mark.parametrize("name", EQUAL)
def test_hydra_and_the_product_build_the_same_net(name):
    torch.manual_seed(0)
    by_hydra = hydra.utils.instantiate(composed("profile", name).model)
    torch.manual_seed(0)
    with hydra_ready():
        ours = build_model(composed_net([f"model={name}"])["model"])
    theirs = by_hydra.state_dict()
    assert list(theirs) == list(ours.state_dict())
    assert all(torch.equal(theirs[key], value) for key, value in ours.state_dict().items())


def test_a_net_of_another_package_needs_no_type_hints():
    net = build_model({**FOREIGN, "json": [1], "_width": 2, "widths": "any"})
    assert net.given == ([1], 2, "any")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({**FOREIGN, "jsn": 1}, r"^model\.jsn: there is no such option\. Did you mean json"),
        ({"_target_": FOREIGN["_target_"]}, r"^model\.num_classes is missing"),
        ({"_target_": "torchvision.models.resnet18", "in_channels": 1}, r"^model\.in_channels: torchvision\.models\."),
        ({"_target_": "convatlas.models.adapters.timm_model", "model_name": "resnet18", "x": 1}, r"^model\.x: "),
        ({"_target_": "torchvision.models.resnet_18"}, "has no member resnet_18"),
        ({"_target_": "torchvison.models.resnet18"}, "there is no module torchvison"),
    ],
)
def test_what_a_net_does_not_take(model, sentence):
    with pytest.raises(UserError, match=sentence):
        build_model(model)


@pytest.mark.parametrize(
    ("override", "now"),
    [
        ("model.weights=runs/a", "weights=runs/a"),
        ("++model.weights=null", "++weights=null"),
        ("~model.weights", "~weights"),
        ("model.about.title=Mine", "about.title=Mine"),
        ("model.weights_share=1", "model.weights_share=1"),
        ("model=lenet5", "model=lenet5"),
    ],
)
def test_overrides_of_older_versions(override, now):
    assert current_overrides([override]) == [now]


INSIDE: dict[str, Any] = {"_target_": "a.Net", "depth": 2, "about": {"title": "Mine"}, "weights": "runs/a"}


@pytest.mark.parametrize(
    ("values", "about", "weights"),
    [
        ({"model": INSIDE}, {"title": "Mine"}, "runs/a"),
        (
            {"model": INSIDE, "about": {"title": "B", "year": 1}, "weights": None},
            {"title": "Mine", "year": 1},
            "runs/a",
        ),
        ({"model": {"_target_": "a.Net", "depth": 2}, "weights": "b"}, {"title": "Net"}, "b"),
        ({"model": {"_target_": "a.Net", "depth": 2, "weights": None}}, {"title": "Net"}, None),
    ],
)
def test_about_and_weights_of_older_files_stand_beside_the_model(values, about, weights):
    moved = upgraded(values)
    assert moved == {"model": {"_target_": "a.Net", "depth": 2}, "about": about, "weights": weights}


def test_a_run_has_them_from_the_command_line(compose):
    run = compose("model.weights=runs/a", "++model.about.title=Mine")
    assert (run.weights, run.about.title, run.about.year) == ("runs/a", "Mine", 1998)
    assert not {"weights", "about", "_convert_"} & set(run.model)


@pytest.mark.parametrize(
    ("file", "title"),
    [
        ("about: {title: Mine, task: classification}\n_target_: torchvision.models.resnet18\n", "Mine"),
        ("_target_: torchvision.models.resnet18\n", "resnet18"),
        ("# @package _global_\ndefaults: [resnet18_small]\nabout: {title: Mine}\nmodel: {zero_init: true}\n", "Mine"),
    ],
)
def test_an_own_file_with_about_inside_or_without_or_inheriting(file, title, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(file)
    monkeypatch.chdir(tmp_path)
    with hydra_ready():
        run = compose_run(["model=mine"], {"variant": "v", "output_dir": "o"})
        net = composed_net(["model=mine"])
    assert run.about.title == net["about"]["title"] == title
    assert run.model["_target_"] == net["model"]["_target_"]
