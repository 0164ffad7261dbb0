"""The test score of nets against the time that they take to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import vl_convert

__all__ = ["latency_chart"]


def latency_chart(rows: Sequence[dict[str, Any]]) -> str:
    """Draw the score over the median latency of a batch, a panel for each task and setting; returns an SVG.

    Args:
        rows: as `convatlas measure` makes them; those without a score are left out.
    """
    values = [
        {
            "net": row["net"],
            "milliseconds": 1e3 * row["p50"],
            "score": 100 * row["score"],
            "setting": f"{row['task']}, {row['runtime']}, threads {row['threads']}, batch {row['batch']}",
        }
        for row in rows
        if row["score"] is not None
    ]
    x = alt.X("milliseconds:Q", scale=alt.Scale(type="log"), title="median milliseconds of a batch")
    y = alt.Y("score:Q", scale=alt.Scale(zero=False), title="test score, %")
    base = alt.Chart().encode(x=x, y=y)
    panel = base.mark_circle(size=50) + base.mark_text(align="left", dx=6, fontSize=9).encode(text="net:N")
    chart = panel.properties(width=560, height=320).facet(
        data=alt.Data(values=values), facet=alt.Facet("setting:N", title=None), columns=1
    )
    svg: str = vl_convert.vegalite_to_svg(chart.resolve_scale(x="independent", y="independent").to_json())
    return svg
