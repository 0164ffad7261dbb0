"""Which layers are trained when the rest is frozen, over nets of every build."""

from __future__ import annotations

import pytest
import torch
from hydra import compose
from omegaconf import OmegaConf
from torch import nn

from convatlas.core.composing import hydra_ready
from convatlas.core.errors import UserError
from convatlas.models.build import build_model
from convatlas.models.freezing import freeze, keep_frozen_in_eval, trained_layers

IMAGE = torch.zeros(1, 1, 32, 32)


def net_of(name: str) -> nn.Module:
    with hydra_ready():
        model = OmegaConf.to_container(compose("profile", [f"model={name}"]).model, resolve=True)
    return build_model({**model, "num_classes": 10, "in_channels": 1})


def blocks(layers: list[str], depth: int) -> list[str]:
    return list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in layers))


@pytest.mark.parametrize(
    ("name", "head", "stage", "depth"),
    [
        ("resnet_cifar", ["classifier"], ["stage3", "classifier"], 1),
        ("resnet18_small", ["fc"], ["layer4", "fc"], 1),
        ("densenet121_small", ["classifier"], ["features.denseblock4", "features.norm5", "classifier"], 2),
        ("mobilenet_v2_small", ["classifier"], ["blocks.6", "conv_head", "bn2", "classifier"], 2),
        ("irevnet_small", ["classifier"], ["blocks.11", "norm", "classifier"], 2),
        ("vgg_small", ["classifier.6"], ["classifier"], 1),
        ("spp_net_small", ["fc8"], ["fc6", "fc7", "fc8"], 1),
        ("lenet5_modern", ["output"], ["c5", "f6", "output"], 1),
        ("squeezenet_small", ["conv10"], ["fires.7", "conv10"], 2),
        ("network_in_network_small", ["mlpconv3.6", "mlpconv3.7"], ["mlpconv3"], 1),
    ],
)
def test_the_head_and_the_last_stage(name: str, head: list[str], stage: list[str], depth: int) -> None:
    net = net_of(name)
    assert trained_layers(net, "head", 10, IMAGE) == head
    assert blocks(trained_layers(net, "last_stage", 10, IMAGE), depth) == stage


def test_auxiliary_classifiers_are_trained_with_the_head() -> None:
    layers = trained_layers(net_of("googlenet_small"), "head", 10, IMAGE)
    assert blocks(layers, 2) == ["auxiliary.0", "auxiliary.1", "classifier"] or blocks(layers, 2)[0] == "classifier"
    assert {"auxiliary.0.classifier", "auxiliary.1.classifier", "classifier"} <= set(layers)


@pytest.mark.parametrize("name", ["resnet_cifar", "revnet_small", "mobilenet_v2_small"])
@pytest.mark.parametrize("trainable", ["head", "last_stage"])
def test_only_what_is_trained_gets_a_gradient_and_new_statistics(name: str, trainable: str) -> None:
    torch.manual_seed(0)
    net = net_of(name)
    layers = freeze(net, trainable, 10, IMAGE)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    keep_frozen_in_eval(net)
    net(torch.rand(4, 1, 32, 32)).sum().backward()
    for key, parameter in net.named_parameters():
        is_trained = key.rpartition(".")[0] in layers
        assert (parameter.grad is not None) == is_trained == parameter.requires_grad, key
    changed = {key.rpartition(".")[0] for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    norms = {key for key, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert changed == norms & set(layers)


def test_a_net_stays_in_the_mode_it_was_in() -> None:
    net = net_of("resnet_cifar").train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    freeze(net, "head", 10, IMAGE)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_everything_is_trained_without_a_choice() -> None:
    net = net_of("resnet_cifar")
    freeze(net, "all", 10, IMAGE)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_net_without_a_clear_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"^recipe\.trainable=head: the last layer .*f6, Linear.* has not 10 outputs"):
        trained_layers(net_of("lenet5"), "head", 10, IMAGE)


def test_a_net_without_stages_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.Linear(8, 10))
    assert trained_layers(net, "head", 10, IMAGE) == ["2"]
    with pytest.raises(UserError, match=r"^recipe\.trainable=last_stage: this net has no stages"):
        trained_layers(net, "last_stage", 10, IMAGE)
