"""What nets cost, counted before anything is trained: the papers' own nets, and variants that are to cost the same."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError

__all__ = ["check_equal", "counts"]


def counts(model: Mapping[str, Any], input_size: Sequence[int], figures: Collection[str]) -> dict[str, float]:
    """Return costs of a net by name, see `convatlas.models.costs.Costs`, for batches of one image.

    Args:
        model: the net's section of a configuration.
        input_size: channels, height and width of one image.
        figures: the costs that are needed; others may be there, too.

    Raises:
        UserError: the net takes no such images.
    """
    alone = set(figures) <= {"parameters", "macs"}
    try:
        return _counts(json.dumps(model, sort_keys=True), tuple(input_size), alone)
    except (ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{model['_target_']} takes no images of {list(input_size)} ({line}); choose another data.image_size."
        ) from error


@cache
def _counts(model: str, input_size: tuple[int, ...], alone: bool) -> dict[str, float]:
    from convatlas.models.build import build_model
    from convatlas.models.costs import count_parameters, counted, measure_costs, multiply_adds

    net = counted(lambda: build_model(json.loads(model)))
    if alone:
        return {"parameters": count_parameters(net), "macs": multiply_adds(net, input_size)[0]}
    return asdict(measure_costs(net, input_size))


def check_equal(configs: Mapping[str, RunConfig], figure: str, within: float, claim: str) -> None:
    """Raise UserError unless a cost differs between variants by no more than a share of the least.

    Args:
        configs: of the variants, by name.
        figure: the cost.
        within: the share.
        claim: the study's file and the claim, for the message.
    """
    found = {}
    for name, config in configs.items():
        side = config.data.image_size
        found[name] = counts(config.model, (config.data.in_channels, side, side), [figure])[figure]
    if max(found.values()) > (1 + within) * min(found.values()):
        listed = ", ".join(f"{name} {value:,.0f}" for name, value in found.items())
        raise UserError(
            f"{claim} compares variants of equal {figure}, within {within:.0%}, but they have {listed}; correct the "
            "nets, or the claim."
        )
