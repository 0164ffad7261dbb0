"""How a search ended: what was found, whether it beats random search and nets made by hand, and what it cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.files import write_text
from convatlas.core.record import RunRecord
from convatlas.core.statistics import Spread, spread
from convatlas.reporting.images import data_uri
from convatlas.reporting.statistics import not_significantly_worse
from convatlas.reporting.wording import count
from convatlas.search.config import SearchRun
from convatlas.search.drawing import as_svg, draw_architecture, draw_course
from convatlas.search.strategy import Context

if TYPE_CHECKING:
    from convatlas.search.strategy import Phase

GPU_HOURS = {"MnasNet": 91_000, "NASNet-A": 48_000, "PNASNet": 6_000, "DARTS": 288, "FBNet": 216}
"""As lecture 3 prints them (figure 42); NASNet's are the 500 GPUs for 4 days of lecture 1."""


def result_of(run: SearchRun, context: Context, phases: list[Phase], finals: dict[str, list[Path]]) -> dict[str, Any]:
    """Return what a search came to as plain values, the same for equal searches."""
    nets = {name: _net(folders) for name, folders in finals.items()}
    return {
        "search": run.search.name,
        "strategy": run.search.strategy.kind,
        "data": run.data.name,
        "data_fingerprint": context.data.card.fingerprint,
        "seed": run.seed,
        "space": None if context.space is None else context.space.size,
        "multiply_adds": {phase.name: phase.spent for phase in phases},
        "sampled": {phase.name: sum("reward" in row for row in phase.rows) for phase in phases},
        "found": {name: found for phase in phases for name, found in phase.architectures.items()},
        "nets": nets,
        "verdicts": _verdicts(phases, nets),
    }


def _net(folders: list[Path]) -> dict[str, Any]:
    """Sum up the seeds of one net: the accuracy on the test split, and its costs.

    A seed that diverged has no accuracy, and then there is no mean: the seeds that are left would flatter the net.
    """
    ended = [folder for folder in folders if (folder / "metrics.json").exists()]
    metrics = [RunRecord.read(folder).metrics for folder in ended]
    accuracies = [each.test["accuracy"] for each in metrics]
    found = spread(accuracies) if len(ended) == len(folders) else None
    costs = metrics[0].costs if metrics else {}
    return {
        "accuracies": accuracies,
        "diverged": len(folders) - len(ended),
        "accuracy": None if found is None else asdict(found),
        "parameters": costs.get("parameters"),
        "macs": costs.get("macs"),
    }


def _verdicts(phases: list[Phase], nets: dict[str, dict[str, Any]]) -> list[str]:
    """Say of what was found how it stands to random search and to every other net."""
    ours = next(iter(phases[0].architectures))
    if ours not in nets:
        return []
    rivals = sorted((name for name in nets if name != ours), key=lambda name: name != "random")
    spreads = {name: None if net["accuracy"] is None else Spread(**net["accuracy"]) for name, net in nets.items()}
    return [verdict(ours, spreads[ours], rival, spreads[rival]) for rival in rivals]


def verdict(name: str, ours: Spread | None, rival: str, other: Spread | None) -> str:
    """Compare two nets by their test accuracy over seeds, at two standard errors of the difference."""
    if ours is None or other is None:
        return f"{name} and {rival}: a training of {name if ours is None else rival} diverged, so neither is better."
    points = 100 * (ours.mean - other.mean)
    figures = f"{100 * ours.mean:.2f} % against {100 * other.mean:.2f} %, {count(ours.n, 'seed')}"
    if ours.std is None or other.std is None:
        return f"{name} and {rival}: {figures}; one seed tells nothing of the spread, so neither is called better."
    if not_significantly_worse(ours, other):
        return f"{name} does not beat {rival}: {figures}, a difference within two standard errors."
    if points > 0:
        return f"{name} beats {rival} by {points:.2f} points: {figures}."
    return f"{name} does not beat {rival}: it is {-points:.2f} points worse, {figures}."


def write_report(run: SearchRun, context: Context, phases: list[Phase], result: dict[str, Any], folder: Path) -> None:
    """Write `report.html`, one page that needs nothing but itself, and the pictures in it as SVG files."""
    from convatlas.reporting.rendering import render

    pictures = {}
    for name, architecture in result["found"].items():
        figure = draw_architecture(architecture)
        if figure is not None:
            pictures[name] = as_svg(figure)
    pictures["course"] = as_svg(draw_course({phase.name: phase.rows for phase in phases}))
    for name, svg in pictures.items():
        write_text(folder / "figures" / f"{name}.svg", svg)
    page = render(
        "search.html.j2",
        run=run,
        result=result,
        phases=phases,
        described=_described(phases),
        pictures={name: data_uri(svg.encode(), "image/svg+xml") for name, svg in pictures.items()},
        gpu_hours=GPU_HOURS,
        machine=None if context.table is None else context.table.machine,
    )
    write_text(folder / "report.html", page)


def _described(phases: list[Phase]) -> dict[str, dict[str, Any]]:
    """Return the row of each phase's best net: its line, its reward and, where it counts, its latency."""
    best: dict[str, dict[str, Any]] = {}
    for phase in phases:
        sampled = [row for row in phase.rows if "reward" in row]
        if sampled:
            best[next(iter(phase.architectures))] = max(sampled, key=lambda row: row["reward"])
    return best
