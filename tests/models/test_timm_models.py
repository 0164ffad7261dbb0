"""Our own nets in timm's registry: created, trained for a step, their classifier exchanged, their maps collected."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import is_model_in_modules
from torch import Tensor, nn

import convatlas.timm_models  # noqa: F401 - registers
from convatlas import create_model, list_models
from convatlas.catalogue import read_about
from convatlas.models.costs import on_meta_device

OWN = [name for name in list_models(task="classification") if read_about(name)["origin"] == "own"]
WITHOUT_STAGES = ("alexnet", "lenet", "hyper_convnet", "hyper_lstm", "hyper_rnn", "lstm", "rnn", "revnet", "irevnet")
STAGED = [name for name in OWN if not name.startswith(WITHOUT_STAGES)]


FAST = {
    "alexnet_small", "csp_darknet53_small", "densenet121_small", "fractalnet_small", "hyper_convnet",
    "inception_v3_small", "lenet5", "mobilenet_v2_small", "resnet_cifar", "revnet_small", "shufflenet_v2_small",
}  # fmt: skip


def slow_but_for_a_few(names: list[str]) -> list[Any]:
    """Leave most nets to the slow tests."""
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


def ours(name: str) -> str:
    return f"convatlas_{name}" if name == "darknet53" else name


def images(name: str, device: str = "meta", batch: int = 2) -> Tensor:
    return torch.rand(batch, *read_about(name)["input_size"], device=device)


def create(name: str, **arguments: Any) -> nn.Module:
    """Create a net on the meta device with as many channels as its paper has."""
    channels = read_about(name)["input_size"][0]
    return on_meta_device(lambda: timm.create_model(ours(name), in_chans=channels, **arguments))


def test_all_are_registered_and_timms_own_names_are_timms():
    assert all(timm.is_model(ours(name)) for name in OWN)
    assert is_model_in_modules("fractalnet", ["timm_models"])
    assert not is_model_in_modules("darknet53", ["timm_models"])
    assert not any(is_model_in_modules(name, ["timm_models"]) for name in ("resnet18", "unet", "retinanet"))


@pytest.mark.parametrize("name", slow_but_for_a_few(OWN))
def test_a_net_as_timms_train_script_makes_and_trains_it(name):
    net = create(name, pretrained=False, num_classes=7, drop_rate=0.0, drop_path_rate=None, global_pool=None)
    output = net.train()(images(name))
    logits = output[0] if isinstance(output, tuple) else output
    logits.sum().backward()
    assert logits.shape == (2, 7) == (2, net.num_classes)
    assert any(parameter.grad is not None for parameter in net.parameters())
    config = resolve_data_config({}, model=net)
    assert config["input_size"] == tuple(read_about(name)["input_size"])
    assert len(config["mean"]) == config["input_size"][0]
    if name == "lenet5":
        with pytest.raises(ValueError, match="LeNet5 has no layer of weights that gives the logits"):
            net.get_classifier()
    else:
        classifier = net.get_classifier()
        assert net.num_features == dict(classifier.named_parameters())["weight"].shape[1]
        assert net.get_submodule(net.default_cfg["classifier"]) is classifier
    net.reset_classifier(3)
    assert net.eval()(images(name)).shape == (2, 3)


@pytest.mark.parametrize("name", slow_but_for_a_few(STAGED))
def test_maps_of_the_stages(name):
    net = create(name, features_only=True).eval()
    maps = net(images(name))
    assert len(maps) >= 2
    assert net.feature_info.channels() == [each.shape[1] for each in maps]
    sides = [each.shape[2] for each in maps]
    assert sides == sorted(set(sides), reverse=True)
    side = read_about(name)["input_size"][1]
    assert net.feature_info.reduction() == [round(side / each) for each in sides]


@pytest.mark.parametrize("name", ["alexnet_small", "lenet5", "hyper_convnet", "lstm", "revnet_small", "irevnet_small"])
def test_nets_without_stages_say_so(name):
    with pytest.raises(ValueError, match=r"^features_only: .* has no stages"):
        create(name, features_only=True)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("resnet_cifar", ["stage1", "stage2", "stage3"]),
        ("wide_resnet", ["blocks.3", "blocks.7", "norm"]),
        ("densenet_cifar", ["stages.0", "stages.2", "norm"]),
        ("fractalnet", ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4"]),
        ("mobilenet_v1", ["stages.0", "stages.1", "stages.2", "stages.3", "stages"]),
    ],
)
def test_which_modules_end_a_stage(name, modules):
    assert create(name, features_only=True).feature_info.module_name() == modules


def test_the_maps_are_those_of_the_net():
    torch.manual_seed(0)
    net = create_model("resnet_cifar").eval()
    torch.manual_seed(0)
    features = timm.create_model("resnet_cifar", features_only=True, out_indices=(1, 2)).eval()
    x = images("resnet_cifar", "cpu")
    second = net.stage2(net.stage1(net.stem(x)))
    assert torch.equal(features(x)[0], second)
    assert torch.equal(features(x)[1], net.stage3(second))


def test_weights_are_those_of_the_same_seed_and_copies_stand_alone():
    torch.manual_seed(0)
    net = timm.create_model("fractalnet_small", num_classes=5)
    torch.manual_seed(0)
    plain = create_model("fractalnet_small", num_classes=5)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in net.state_dict().items())
    twin = copy.deepcopy(net)  # as the average of timm's train script is made
    twin.reset_classifier(2)
    assert (twin.num_classes, net.num_classes) == (2, 5)
    assert net.get_classifier().out_features == 5


def test_every_training_batch_draws_anew():
    torch.manual_seed(0)
    net = timm.create_model("stochastic_depth_resnet_small", survival=0.1).train()
    shares = []
    for _ in range(8):
        net(images("stochastic_depth_resnet_small", "cpu"))
        shares.append(tuple(net.step_figures().items()))
    assert len(set(shares)) > 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"pretrained": True}, "^resnet_cifar has no trained weights"),
        ({"drop_rate": 0.5}, r"^model\.dropout: there is no such option"),
        ({"dept": 3}, r"^model\.dept: there is no such option\. Did you mean depth"),
    ],
)
def test_what_a_net_does_not_have(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        timm.create_model("resnet_cifar", **arguments)
