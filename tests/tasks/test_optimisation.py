"""The optimiser on the CPU: one kernel for all parameters where torch has it, with the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.config import Recipe
from convatlas.tasks.optimisation import build_optimizer


def recipe_with(*overrides: str) -> Recipe:
    with hydra_ready():
        return compose_run(["model=lenet5_modern", *overrides], {"variant": "one", "output_dir": "runs/one"}).recipe


def stepped(recipe: Recipe, **options: Any) -> tuple[torch.optim.Optimizer, list[torch.Tensor]]:
    draws = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    optimizer = build_optimizer(net, recipe, **options)
    for _ in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draws)
        optimizer.step()
    return optimizer, [parameter.detach() for parameter in net.parameters()]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_one_kernel_for_all_parameters_gives_the_same_weights(name: str) -> None:
    recipe = recipe_with(f"recipe/optimizer={name}", "recipe.optimizer.weight_decay=0.01")
    fused, ours = stepped(recipe)
    plain, expected = stepped(recipe, mixed_precision=True)
    assert all(group["fused"] for group in fused.param_groups)
    assert not any(group["fused"] for group in plain.param_groups)
    for weights, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(weights, reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "used"),
    [
        (["recipe/optimizer=adamw", "+recipe.optimizer.fused=false"], False),
        (["recipe/optimizer=adamw", "+recipe.optimizer.foreach=true"], None),
        (["recipe/optimizer=sgd"], None),
        (["recipe/optimizer=rmsprop"], "has none"),
        (["recipe/optimizer=rmsprop_tf"], "has none"),
    ],
)
def test_what_the_section_says_holds_and_other_classes_are_left_alone(overrides: list[str], used: object) -> None:
    optimizer, _ = stepped(recipe_with(*overrides))
    assert all(group.get("fused", "has none") == used for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_parameter_may_have_its_first_gradient_later_than_others(name: str) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = build_optimizer(nn.Sequential(first, second), recipe_with(f"recipe/optimizer={name}"))
    before = second.weight.detach().clone()
    for nets in ((first,), (first, second), (second,)):
        optimizer.zero_grad(set_to_none=True)
        for net in nets:
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert not torch.equal(second.weight, before)
