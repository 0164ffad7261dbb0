"""Weights that a net starts from: what fits, what is left out, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.errors import UserError
from convatlas.models.classification.resnet_cifar import ResNetCifar
from convatlas.models.weights import digest, take_weights


def net(classes: int = 10, **options: int) -> nn.Module:
    return ResNetCifar(**({"depth": 8, "width": 4, "in_channels": 1} | options), num_classes=classes)


def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return net().state_dict()


def test_all_tensors_are_taken() -> None:
    given, taker = state(), net()
    assert take_weights(taker, given, 10, "there") == []
    assert all(torch.equal(value, given[key]) for key, value in taker.state_dict().items())


def test_a_head_of_other_classes_is_left_as_it_was_drawn() -> None:
    given, taker = state(), net(classes=3)
    before = {key: value.clone() for key, value in taker.state_dict().items()}
    heads = ["classifier.weight", "classifier.bias"]
    assert take_weights(taker, given, 3, "there") == heads
    for key, value in taker.state_dict().items():
        assert torch.equal(value, before[key] if key in heads else given[key])


def test_another_architecture_is_refused_with_the_first_name_that_differs() -> None:
    with pytest.raises(UserError, match=r"^weights=there lacks stage1\.1\..* \(\d+ names differ\)"):
        take_weights(net(depth=14), state(), 10, "there")
    with pytest.raises(UserError, match=r"^weights=there has extra, unlike this net \(1 names differ\)"):
        take_weights(net(), {**state(), "extra": torch.zeros(1)}, 10, "there")


@pytest.mark.parametrize(("options", "name"), [({"in_channels": 3}, "weight"), ({"width": 8}, "weight")])
def test_another_shape_is_refused(options: dict[str, int], name: str) -> None:
    with pytest.raises(UserError, match=rf"^weights=there: \S*{name} has the shape \(.*\) there and \(.*\) here"):
        take_weights(net(**options), state(), 10, "there")


def test_heads_of_two_numbers_of_classes_are_refused() -> None:
    given = state()
    given["classifier.bias"] = torch.zeros(7)
    with pytest.raises(UserError, match=r"classifier\.bias has the shape \(7,\) there and \(3,\) here"):
        take_weights(net(classes=3), given, 3, "there")


def test_the_digest_is_that_of_names_and_values() -> None:
    given = state()
    same = {key: given[key].clone() for key in reversed(given)}
    assert digest(same) == digest(given)
    same["classifier.bias"][0] += 1
    assert digest(same) != digest(given)
    assert digest({"a": torch.zeros(2, 3)}) != digest({"a": torch.zeros(3, 2)}) != digest({"b": torch.zeros(3, 2)})
    assert len(digest({"count": torch.tensor(3)})) == 64
