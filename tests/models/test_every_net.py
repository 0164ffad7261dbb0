"""What must hold for every net of conf/model: a new one is tested by being there.

Shapes, gradients and counts are checked on the meta device at the paper's input, values for real; of the large nets all
but the counts in the slow tests.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convatlas.core.composing import hydra_ready
from convatlas.models.build import build_model
from convatlas.models.costs import count_parameters, counted, on_meta_device
from convatlas.models.interfaces import auxiliary_loss_weights, leaves_gradients_out
from helpers import ROOT, macs_of

NAMES = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
ABOUT = {name: yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())["about"] for name in NAMES}
CLASSIFIERS = [name for name in NAMES if ABOUT[name]["task"] == "classification"]
GOLDEN_FILE = Path(__file__).parent / "golden_costs.json"
GOLDEN: dict[str, dict[str, Any]] = json.loads(GOLDEN_FILE.read_text())


def is_large(name: str) -> bool:
    """Say whether a net's values are for the slow tests; a new one that nobody has counted yet is not."""
    counts = GOLDEN.get(name, {"macs": 0, "parameters": 0})
    return counts["macs"] > 100e6 or counts["parameters"] > 5e6


def slow_if_large(names: list[str]) -> list[Any]:
    """Mark the large nets of a list as slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if is_large(name) else name for name in names]


@cache
def config(name: str) -> dict[str, Any]:
    """Return the composed configuration of a net."""
    with hydra_ready():
        composed: Any = OmegaConf.to_container(compose("profile", [f"model={name}"]).model, resolve=True)
    return composed


def inputs(name: str, batch: int, device: str = "cpu") -> Tensor:
    """Return random images of the paper's size."""
    return torch.rand(batch, *ABOUT[name]["input_size"], device=device)


def logits_of(output: Any) -> Tensor:
    """Return the main logits, with or without auxiliary classifiers beside them."""
    return output if isinstance(output, Tensor) else output.logits


def test_the_golden_file_lists_every_net():
    assert sorted(GOLDEN) == NAMES, "run `python tests/models/make_golden_costs.py`"


NEEDS_STORAGE = {"csp_darknet53_pan_yolo", "csp_densenet_efm_yolo", "csp_resnext50_pan_yolo", "retinanet"}
"""Large detectors whose multiply-adds are counted on real tensors."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in NEEDS_STORAGE else name for name in NAMES]
)
def test_costs_are_the_golden_ones(name):
    net = counted(lambda: build_model(config(name)))
    found = {"parameters": count_parameters(net), "macs": macs_of(net, ABOUT[name]["input_size"])}
    assert found == GOLDEN.get(name), "a new net: run `python tests/models/make_golden_costs.py`"


@pytest.mark.parametrize("name", NAMES)
def test_a_net_says_where_it_comes_from(name):
    about = ABOUT[name]
    assert set(about) == {"title", "task", "paper", "year", "origin", "input_size", "deviations"}
    assert about["origin"] in {"own", "timm", "torchvision"}
    assert 1989 <= about["year"] <= 2026


@pytest.mark.parametrize("name", slow_if_large(CLASSIFIERS))
def test_shape_and_gradients_at_the_papers_input(name):
    net = on_meta_device(lambda: build_model(config(name))).train()
    output = net(inputs(name, 2, "meta"))
    classes = config(name)["num_classes"]
    assert logits_of(output).shape == (2, classes)
    heads = [output] if isinstance(output, Tensor) else [output.logits, *output.auxiliary]
    assert len(heads) - 1 == len(auxiliary_loss_weights(net))
    sum(head.sum() for head in heads).backward()
    if leaves_gradients_out(net):  # of one batch; not of many
        for seed in range(40):
            if all(p.grad is not None for p in net.parameters() if p.requires_grad):
                break
            net.begin_step(0, 1, seed)
            logits_of(net(inputs(name, 2, "meta"))).sum().backward()
    assert [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", slow_if_large(CLASSIFIERS))
def test_other_classes_and_channels(name):
    other = {**config(name), "num_classes": 7, "in_channels": 2}
    net = on_meta_device(lambda: build_model(other)).eval()
    _, height, width = ABOUT[name]["input_size"]
    assert net(torch.rand(1, 2, height, width, device="meta")).shape == (1, 7)


@pytest.mark.parametrize("name", slow_if_large(CLASSIFIERS))
def test_one_image_in_evaluation_gives_the_same_finite_logits_twice_and_after_a_round_trip(name, tmp_path):
    torch.manual_seed(0)
    net = build_model(config(name)).eval()
    image = inputs(name, 1)
    with torch.inference_mode():
        first, second = net(image), net(image)
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    again = build_model(config(name)).eval()
    again.load_state_dict(load_file(tmp_path / "net.safetensors"))
    with torch.inference_mode():
        assert torch.equal(again(image), first)


EXPORTED = {"densenet121_small", "fractalnet_small", "hyper_convnet", "lenet5", "mobilenet_v2_small", "revnet_small"}


@pytest.mark.parametrize(
    "name", [name if name in EXPORTED else pytest.param(name, marks=pytest.mark.slow) for name in CLASSIFIERS]
)
def test_a_net_exports(name):
    net = on_meta_device(lambda: build_model(config(name))).eval()
    exported = torch.export.export(net, (inputs(name, 1, "meta"),))
    assert sum(isinstance(node.target, torch._ops.OpOverload) for node in exported.graph.nodes) > 0
    assert isinstance(exported.module(), nn.Module)


SMALL = [name for name in CLASSIFIERS if max(ABOUT[name]["input_size"][1:]) <= 32]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_net_takes_the_digits(name):
    small = {**config(name), "num_classes": 10, "in_channels": 1}
    net = on_meta_device(lambda: build_model(small)).train()
    assert logits_of(net(torch.rand(4, 1, 32, 32, device="meta"))).shape == (4, 10)
