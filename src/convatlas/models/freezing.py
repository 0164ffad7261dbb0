"""Which parts of a classification net are trained and which are frozen, found for any net by running it once.

The classifier ("head") is the last layer with weights that is computed; with it go auxiliary classifiers, which
evaluation does not compute. The last stage is the block in front of it and all that is computed after that block: of a
ResNet its last stage, of a net that is one row of blocks the last of them, of a net without blocks its last two layers.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from convatlas.core.errors import UserError
from convatlas.models.interfaces import auxiliary_loss_weights


def freeze(net: nn.Module, trainable: str, num_classes: int, image: Tensor) -> list[str]:
    """Let only a part of a net get gradients, and return the names of its layers.

    Args:
        trainable: "all", "last_stage" or "head", as `recipe.trainable` has it.
        num_classes: classes that the head tells apart.
        image: `(1, C, H, W)`, any image that the net takes.

    Raises:
        UserError: it is not clear which layer is the head.
    """
    layers = _layers(net)
    trained = list(layers) if trainable == "all" else trained_layers(net, trainable, num_classes, image)
    for name, layer in layers.items():
        if name not in trained:
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(False)
    return trained


def keep_frozen_in_eval(net: nn.Module) -> None:
    """Put all that is frozen in evaluation mode: the statistics of its batch norms stay as they are."""
    for module in net.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def trained_layers(net: nn.Module, trainable: str, num_classes: int, image: Tensor) -> list[str]:
    """Return the names of the layers of the head or the last stage, in the order of the net's definition.

    Raises:
        UserError: the last layer is no linear map or convolution to `num_classes` values, or there are no stages.
    """
    order = _order(net, image)
    weighted = [name for name in order if any(p.ndim >= 2 for p in net.get_submodule(name).parameters(recurse=False))]
    head = net.get_submodule(weighted[-1])
    outputs = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}
    found = next((getattr(head, size) for kind, size in outputs.items() if isinstance(head, kind)), None)
    if found != num_classes:
        raise UserError(
            f"recipe.trainable={trainable}: the last layer of this net ({weighted[-1] or 'the net itself'}, "
            f"{type(head).__name__}) has not {num_classes} outputs, so it is not clear what its head is; "
            "use recipe.trainable=all."
        )
    before = order[: order.index(weighted[-1])]
    chosen = {*order[len(before) :], *_auxiliary(net, order)}
    if trainable == "last_stage":
        stage = _last_stage(before, set(weighted[:-1]))
        if len(stage) == len(before) or set(stage) != set(before[-len(stage) :]):  # the whole net, or one of two towers
            raise UserError(
                "recipe.trainable=last_stage: this net has no stages that can be distinguished; use head or all."
            )
        chosen |= set(stage)
    return [name for name in _layers(net) if name in chosen]


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have parameters of their own, by name."""
    return {name: module for name, module in net.named_modules() if any(True for _ in module.parameters(recurse=False))}


def _order(net: nn.Module, image: Tensor) -> list[str]:
    """Return the names of the layers in the order in which evaluation computes them; of several times the last."""
    done: dict[str, None] = {}

    def note(name: str) -> None:
        done.pop(name, None)
        done[name] = None

    hooks = [layer.register_forward_hook(lambda *_, name=name: note(name)) for name, layer in _layers(net).items()]
    was_training = net.training
    try:
        with torch.no_grad():
            net.eval()(image)
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    return list(done)


def _auxiliary(net: nn.Module, order: Iterable[str]) -> set[str]:
    """Return the layers of auxiliary classifiers: those that evaluation leaves out."""
    return set(_layers(net)) - set(order) if auxiliary_loss_weights(net) else set()


def _last_stage(order: list[str], weighted: set[str]) -> list[str]:
    """Return the last block and what is computed after it.

    A block is a child with two layers of weights or more, or two such layers that are children themselves. A child with
    more than half of the net's layers holds all stages; the search goes on within it.

    Args:
        order: names of the layers before the head, as they are computed.
        weighted: those of them that have weights, as opposed to gains and biases alone.
    """
    stage: list[str] = []
    inside = order
    for depth in range(1, 1 + max(name.count(".") + 1 for name in order)):
        children: dict[str, list[str]] = {}
        for name in inside:
            child = ".".join(name.split(".")[:depth])
            children[child] = [*children.pop(child, []), name]  # in the order of their last layers
        single_layers = 0
        for child, layers in reversed(children.items()):
            weights = len(weighted.intersection(layers))
            if 2 * weights > len(weighted) and layers != [child]:
                inside = layers
                break
            stage += layers
            single_layers += child in weighted
            if weights >= 2 or single_layers >= 2:
                return stage
        else:
            return stage
    return stage
