"""The blocks of any net, as units for dividing it among processes."""

from __future__ import annotations

from torch import nn

__all__ = ["blocks_of"]

MOST = 1 / 8
"""A block has at most this share of a net's parameters, unless it is a single layer."""
LEAST = 1 / 200
"""Modules with less stay with what surrounds them: gathering them apart costs more than it saves."""


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """Divide a net into modules that are called one after the other and do not overlap; the rest is the net's own.

    From the net down, a module is a block once it has no more than `MOST` of all parameters. A module that has no
    forward pass, or shares a parameter with what lies outside of it, is none; what is in it may be.
    """
    owners: dict[int, int] = {}
    for module in net.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    whole = _size(net)
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            size = _size(child)
            small = size <= MOST * whole or not any(True for _ in child.children())
            if size < LEAST * whole:
                continue
            if small and not isinstance(child, nn.ModuleList | nn.ModuleDict) and not _shares(child, owners):
                found.append(child)
            else:
                visit(child)

    visit(net)
    return found


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shares(module: nn.Module, owners: dict[int, int]) -> bool:
    within: dict[int, int] = {}
    for each in module.modules():
        for parameter in each._parameters.values():
            if parameter is not None:
                within[id(parameter)] = within.get(id(parameter), 0) + 1
    return any(owners[key] != number for key, number in within.items())
