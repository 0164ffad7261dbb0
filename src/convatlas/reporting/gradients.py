"""The norm of every layer's gradient from the first layer to the last, where a study asked for it."""

from __future__ import annotations

import math

import altair as alt

from convatlas.reporting.charts import ROWS, Chart, Row, called, colours, compiled, round_values, short
from convatlas.reporting.charts import unless_another_is_picked as unless_picked
from convatlas.reporting.results import Group
from convatlas.reporting.variants import Variant
from convatlas.reporting.wording import count

PREFIX = "gradient/"


def gradient_chart(group: Group) -> Chart | None:
    """Draw the mean norm of each layer's gradient in the first epoch; None where no run measured it."""
    colour = colours(group)
    rows: list[Row] = []
    for variant in group.variants:
        norms = first_epoch_norms(variant)
        last = max(1, len(norms) - 1)
        rows += [
            {"e": short(number / last), "m": short(norm), "n": number + 1, "v": variant.title, "c": colour[variant.key]}
            for number, norm in enumerate(norms)
            if norm > 0
        ]
    if not rows:
        return None
    low, high = min(row["m"] for row in rows), max(row["m"] for row in rows)
    axis = alt.Axis(values=round_values(low, high), format="~g")
    place = alt.Axis(grid=False, values=[0, 1], labelExpr="datum.value == 0 ? 'first layer' : 'last'")
    line = (
        alt.Chart(ROWS)
        .encode(
            x=alt.X("e:Q", title="place in the net", axis=place),
            y=alt.Y("m:Q", title="norm of the gradient", scale=alt.Scale(type="log", nice=False), axis=axis),
            color=alt.Color("c:N", scale=None),
            detail="v:N",
            opacity=unless_picked(1),
            tooltip=[called("v", "variant"), called("n", "layer"), called("m", "norm")],
        )
        .mark_line(aria=False, strokeWidth=1.8, point={"size": 14, "filled": True})
    )
    lowest = min(rows, key=lambda row: row["m"])
    description = (
        f"Norm of the gradient by layer of {count(len({row['v'] for row in rows}), 'variant')}. "
        f"The lowest is {lowest['m']:g}, at layer {lowest['n']} of {lowest['v']}."
    )
    note = "Mean over the batches of the first epoch and over the seeds, before clipping. The scale is logarithmic."
    return Chart("Gradient of each layer", note, compiled([line], rows, description))


def first_epoch_norms(variant: Variant) -> list[float]:
    """Return the mean over the seeds of each layer's norm in the first epoch, from the first layer on."""
    columns = sorted({c for run in variant.runs for c in run.history if c.startswith(PREFIX)})
    means = []
    for column in columns:
        values = [run.history[column][0] for run in variant.runs if run.history.get(column)]
        means.append(math.fsum(values) / len(values))
    return means
