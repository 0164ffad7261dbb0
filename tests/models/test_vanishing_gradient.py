"""Why deep plain nets stop training: the lecture's chain of three neurons, and the same in real nets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convatlas.models.classification.resnet_cifar import ResNetCifar
from convatlas.training.net_callbacks import GradientNorms


def chain_gradient(skip: bool) -> float:
    """Return dL/dw1 of the chain x1 = w1 x, x2 = w2 x1, x3 = w3 x2 (+ x1), with every local derivative 0.1."""
    w1 = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    x, w2, w3, loss_slope = 0.1, 0.1, 0.1, 0.1  # dx1/dw1 = x, dx2/dx1 = w2, dx3/dx2 = w3, dL/dx3
    x1 = w1 * x
    x3 = w3 * (w2 * x1) + (x1 if skip else 0)
    (loss_slope * x3).backward()
    return float(w1.grad)


def test_the_lectures_chain_of_three_neurons():
    """The lecture rounds: 0.1 * (0.1 * 0.1 + 1) * 0.1 = 0.0101 is its one hundredth."""
    without, with_skip = chain_gradient(skip=False), chain_gradient(skip=True)
    assert without == pytest.approx(1e-4, rel=1e-12)
    assert with_skip == pytest.approx(1.01e-2, rel=1e-12)
    assert round(with_skip / without) == 101


def gradient_norms(**options) -> list[float]:
    """Return the norm of every layer's gradient at the start."""
    torch.manual_seed(0)
    net = ResNetCifar(width=4, **options)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    callback = GradientNorms(net)
    nn.functional.cross_entropy(net(images), labels).backward()
    callback.on_before_optimizer_step(None, type("Module", (), {"device": torch.device("cpu")}), None)
    means = callback.close()
    assert list(means) == [f"{n:03d}" for n in range(1, options["depth"] + 1)]
    return list(means.values())


def test_the_first_layers_gradient_of_an_old_plain_net_shrinks_with_depth_and_that_of_a_residual_net_does_not():
    old = {"shortcut": "none", "batch_norm": False, "initialisation": "xavier"}
    shallow, deep = gradient_norms(depth=8, **old)[0], gradient_norms(depth=44, **old)[0]
    assert deep < 1e-3 * shallow
    assert gradient_norms(depth=44)[0] > 1e3 * deep


def test_a_layer_without_a_gradient_counts_as_zero():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 2))
    callback = GradientNorms(net)
    net[1](torch.ones(1, 4)).sum().backward()
    callback.on_before_optimizer_step(None, type("Module", (), {"device": torch.device("cpu")}), None)
    assert callback.close() == {"001": 0.0, "002": pytest.approx(8**0.5)}


def test_means_go_on_after_an_interruption():
    first, second = GradientNorms(nn.Linear(1, 1)), GradientNorms(nn.Linear(1, 1))
    first.add({"001": 1.0})
    second.load_state_dict(first.state_dict())
    second.add({"001": 2.0})
    assert second.close() == {"001": 1.5}
    assert second.state_dict() == {"sums": [{}], "batches": 0}
