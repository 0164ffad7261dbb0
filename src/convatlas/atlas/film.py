"""Training as a film: charts with a slider, of what changes by step, by depth and by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import altair as alt

from convatlas.atlas.trace import trace_net
from convatlas.models.classification.fractalnet import FractalNet
from convatlas.models.classification.revnet import revnet_cifar
from convatlas.reporting.charts import HUES, ROWS, Chart, Row, compiled, short, tooltip
from convatlas.reporting.study import Study, Variant

__all__ = ["Film", "drop_paths", "gradient_films", "stored_by_depth"]

STEPS = 24
FILTERS = (32, 32, 64, 128)
DEPTHS = (38, 74, 110, 146)


class Film(NamedTuple):
    """A chart with a slider, and the names of its lines with their colours."""

    chart: Chart
    legend: Sequence[tuple[str, str]] = ()


def drop_paths() -> Film:
    """Draw which convolutions of a FractalNet are computed, step by step, as its own draws have it."""
    net = FractalNet(widths=(16, 16), columns=4, drop_path="mixed", drop_path_rate=0.15, num_classes=10, in_channels=3)
    net.train()
    block = next(each for each in net.modules() if hasattr(each, "everything"))
    everything: list[tuple[int, int]] = block.convolutions_behind(block.everything())  # type: ignore[operator]
    rows = []
    for step in range(STEPS):
        net.begin_step(step, STEPS, seed=step)
        paths = net.draw_paths()
        alive = set(block.convolutions_behind(paths.kept[0]))  # type: ignore[operator]
        how = f"column {paths.column} alone" if paths.column else "paths dropped at the joins"
        for row, column in everything:
            height = block.height(column)  # type: ignore[operator]
            rows.append(
                {"s": step + 1, "x": column, "a": row - height + 0.08, "b": row - 0.08, "h": how,
                 "c": "var(--hue-0)" if (row, column) in alive else "var(--rule)",
                 "w": "computed" if (row, column) in alive else "left out"}
            )  # fmt: skip
    slider = _slider("step", STEPS)
    bars = (
        alt.Chart(ROWS)
        .mark_bar(aria=False, cornerRadius=3, width=46)
        .encode(
            x=alt.X("x:O", title="column", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("a:Q", title="depth in the block", scale=alt.Scale(reverse=True), axis=alt.Axis(grid=False)),
            y2="b:Q",
            color=alt.Color("c:N", scale=None),
            tooltip=tooltip(w="convolution", h="this step"),
        )
        .transform_filter("datum.s === step")
        .add_params(slider)
    )
    note = (
        "One block of a FractalNet with four columns; each bar is a convolution, as long as the rows that it reaches "
        "over. In half of the steps one column learns alone, in the others each join drops its inputs with probability "
        "0.15. Grey ones are not computed."
    )
    return Film(Chart("Drop-path, step by step", note, compiled([bars], rows, note)))


def stored_by_depth(size: tuple[int, int, int] = (3, 32, 32)) -> Film:
    """Draw the bytes that a RevNet keeps for the backward pass, by depth, with and without computing again."""
    titles = {False: "activations stored", True: "computed again"}
    rows = []
    for saving, title in titles.items():
        for depth in DEPTHS:
            build = partial(revnet_cifar, depth=depth, bottleneck=False, filters=FILTERS, memory_saving=saving)
            trace = trace_net(build, size)
            stored = sum(operation.stored for operation in trace.operations) / 1e6
            rows.append({"d": depth, "m": short(stored), "v": title, "c": f"var(--hue-{int(saving)})"})
    slider = _slider("layers", DEPTHS[-1], DEPTHS[0], DEPTHS[1] - DEPTHS[0])
    base = alt.Chart(ROWS).encode(
        x=alt.X("d:Q", title="layers", axis=alt.Axis(grid=False, values=list(DEPTHS))),
        y=alt.Y("m:Q", title="kept for backward, MB an image", scale=alt.Scale(zero=True)),
        color=alt.Color("c:N", scale=None),
    )
    until = "datum.d <= layers"
    line = base.transform_filter(until).mark_line(aria=False).add_params(slider)
    points = base.transform_filter(until).mark_circle(aria=False, size=70).encode(
        tooltip=tooltip(v="net", d="layers", m="MB")
    )  # fmt: skip
    ends = alt.Chart(ROWS).transform_filter("datum.d === layers").mark_text(
        aria=False, align="right", dx=-9, dy=-8
    ).encode(x="d:Q", y="m:Q", text="v:N", color=alt.Color("c:N", scale=None))  # fmt: skip
    note = (
        "A RevNet for images of 32 × 32, one image: what each layer was given is stored, as in other nets, or "
        "computed again from the end, so that further layers of a stage add nothing. The slider makes the net deeper."
    )
    return Film(Chart("Activations stored, by depth", note, compiled([line, points, ends], rows, note)))


def gradient_films(studies: Iterable[Study]) -> list[Film]:
    """Draw the norm of each layer's gradient, epoch by epoch, of every study whose runs logged it."""
    return [film for study in studies if (film := _gradients(study))]


def _gradients(study: Study) -> Film | None:
    rows: list[Row] = []
    variants = [variant for variant in study.variants if _columns(variant)][:HUES]
    epochs = 0
    for number, variant in enumerate(variants):
        columns = _columns(variant)
        for layer, column in enumerate(columns):
            for epoch, values in variant.curve(column, 30):
                norm = math.fsum(values) / len(values)
                epochs = max(epochs, epoch)
                if norm > 0:
                    rows.append(
                        {"e": epoch, "x": short(layer / max(1, len(columns) - 1)), "m": short(norm), "n": layer + 1,
                         "v": variant.title, "c": f"var(--hue-{number})"}
                    )  # fmt: skip
    if not rows:
        return None
    slider = _slider("epoch", epochs)
    place = alt.Axis(grid=False, values=[0, 1], labelExpr="datum.value == 0 ? 'first layer' : 'last'")
    norms = [float(row["m"]) for row in rows]
    line = (
        alt.Chart(ROWS)
        .mark_line(aria=False, point={"size": 14, "filled": True})
        .encode(
            x=alt.X("x:Q", title="place in the net", axis=place),
            y=alt.Y(
                "m:Q",
                title="norm of the gradient",
                scale=alt.Scale(type="log", domain=[min(norms), max(norms)]),
                axis=alt.Axis(format="~g"),
            ),
            color=alt.Color("c:N", scale=None),
            detail="v:N",
            tooltip=tooltip(v="variant", n="layer", m="norm"),
        )
        .transform_filter("datum.e === epoch")
        .add_params(slider)
    )
    note = "Mean over the batches of the epoch and over the seeds, before clipping. The scale is logarithmic."
    legend = [(variant.title, f"var(--hue-{number})") for number, variant in enumerate(variants)]
    return Film(Chart(f"Gradient by layer: {study.title}", note, compiled([line], rows, note)), legend)


def _columns(variant: Variant) -> list[str]:
    return sorted({c for run in variant.runs for c in run.record.columns if c.startswith("gradient/")})


def _slider(name: str, most: int, least: int = 1, step: int = 1) -> alt.Parameter:
    bound = alt.binding_range(min=least, max=most, step=step, name=f"{name} ")
    return alt.param(name=name, value=most, bind=bound)
