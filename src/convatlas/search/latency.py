"""The latency of each candidate of a space on this machine: measured once per operator and shape, kept in a file.

Wu et al., FBNet (CVPR 2019), section 3.2: the latency of a net is the sum over its operators. Times are microseconds of
one inference, so that log(latency) is well above 0 for any net.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from convatlas.core.digests import digest
from convatlas.core.environment import processor
from convatlas.core.errors import UserError
from convatlas.core.files import read_json, write_json
from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.search.spaces import Decisions, FBNetSpace

STEM, HEAD = "stem", "head"


@dataclass(frozen=True)
class LatencyTable:
    """Microseconds by operator; see `Layer.operator` for their names."""

    machine: dict[str, str | int]  # what they were measured on
    space: str  # fingerprint of the space they were measured for
    microseconds: dict[str, float]  # by operator; `stem` and `head` are what every net of the space has

    @property
    def fixed(self) -> float:
        """Microseconds of the parts that are not searched."""
        return self.microseconds[STEM] + self.microseconds[HEAD]

    def of_layer(self, space: FBNetSpace, layer: int) -> Tensor:
        """Return the microseconds of a layer's candidates, `(candidates,)`."""
        found = space.layers[layer]
        return torch.tensor([self.microseconds[found.operator(name)] for name in found.candidates])

    def of(self, space: FBNetSpace, decisions: Decisions) -> float:
        names = zip(space.layers, space.names(decisions), strict=True)
        return self.fixed + sum(self.microseconds[layer.operator(name)] for layer, name in names)


def this_machine(device: torch.device) -> dict[str, str | int]:
    """Describe what determines a latency: CPU, threads, device and version of PyTorch."""
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def space_digest(space: FBNetSpace, in_channels: int, num_classes: int) -> str:
    """Return the fingerprint of what is measured for a space."""
    layers = [[layer.operator(name) for name in layer.candidates] for layer in space.layers]
    config = space.config
    ends = [config.stem_channels, config.stem_stride, config.head_channels, config.always_expand]
    return digest([layers, ends, in_channels, num_classes])[:16]


def table_for(
    space: FBNetSpace,
    file: Path,
    *,
    in_channels: int,
    num_classes: int,
    device: torch.device,
    rounds: int,
    remeasure: bool = False,
) -> LatencyTable:
    """Read the table of a space, or measure it and write the file.

    Raises:
        UserError: the file belongs to another machine or another space, or is damaged; it says how to measure again.
    """
    machine, fingerprint = this_machine(device), space_digest(space, in_channels, num_classes)
    remedy = (
        "pass search.latency.remeasure=true or delete it to measure again, or name another file with "
        "search.latency.table."
    )
    found = _read_table(file) if file.exists() else None
    if remeasure or found is None:
        times = measure_table(space, in_channels, num_classes, device=device, rounds=rounds)
        table = LatencyTable(machine, fingerprint, times)
        write_json(file, asdict(table))
        return table
    if found.machine != machine:
        old = found.machine
        changed = [f"{k} was {old.get(k)}, now {v}" for k, v in machine.items() if old.get(k) != v]
        raise UserError(f"{file} was measured on another machine ({'; '.join(changed)}); {remedy}")
    if found.space != fingerprint:
        raise UserError(f"{file} was measured for another search space or image size; {remedy}")
    return found


def _read_table(file: Path) -> LatencyTable:
    other = "delete it, or name another file with search.latency.table."
    found = read_json(file, other)
    shape = {"machine": dict, "space": str, "microseconds": dict}
    if not isinstance(found, dict) or {key: type(value) for key, value in found.items()} != shape:
        raise UserError(f"{file} is not a table of latencies; {other}")
    return LatencyTable(**found)


def measure_table(
    space: FBNetSpace, in_channels: int, num_classes: int, *, device: torch.device, rounds: int
) -> dict[str, float]:
    """Measure every operator of a space once, in evaluation and with one image; returns microseconds."""
    config = space.config
    last = config.stages[-1].channels
    head = nn.Sequential(
        ConvNormAct(last, config.head_channels),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(config.head_channels, num_classes),
    )
    stem = ConvNormAct(in_channels, config.stem_channels, 3, stride=config.stem_stride)
    operators: dict[str, tuple[nn.Module, Tensor]] = {
        STEM: (stem, torch.rand(1, in_channels, space.image_size, space.image_size)),
        HEAD: (head, torch.rand(1, last, space.head_size, space.head_size)),
    }
    for layer in space.layers:
        image = torch.rand(1, layer.in_channels, layer.size, layer.size)
        for name in layer.candidates:
            if layer.operator(name) not in operators:
                operators[layer.operator(name)] = layer.block(name, always_expand=config.always_expand), image
    modules = [(module.to(device).eval(), image.to(device)) for module, image in operators.values()]
    return dict(zip(operators, fastest(modules, rounds), strict=True))


def fastest(modules: Sequence[tuple[nn.Module, Tensor]], rounds: int, calls: int = 10) -> list[float]:
    """Return the microseconds of each module's fastest call over `rounds` rounds of `calls` calls.

    The modules take turns, so that other load on the machine slows all of them alike.
    """
    least = [float("inf")] * len(modules)
    with torch.inference_mode():
        for _ in range(rounds):
            for number, (module, image) in enumerate(modules):
                module(image)  # warms up
                _wait(image.device)
                for _ in range(calls):
                    start = time.perf_counter()
                    module(image)
                    _wait(image.device)
                    least[number] = min(least[number], 1e6 * (time.perf_counter() - start))
    return least


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
