"""The pages of the atlas: the map, a card for each net, nets side by side, and films of training.

Every page needs nothing but itself; links lead from one to another and to the reports of the studies. The same nets,
plan and runs give the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from convatlas.atlas.appearances import Appearance, read_appearances
from convatlas.atlas.lineage import Lineage
from convatlas.atlas.lineage_map import draw_map
from convatlas.atlas.pictures import activation_maps, filters
from convatlas.atlas.results import Comparison, Result, comparisons, results_of
from convatlas.core.files import write_text
from convatlas.reporting.charts import COLOUR, EPOCHS, ROWS, Chart, compiled, tooltip
from convatlas.reporting.findings import Finding, words
from convatlas.reporting.rendering import chart_library, for_script_element, render, template_source
from convatlas.reporting.study import Study
from convatlas.reporting.trade_offs import LATENCY, PRICES, trade_offs
from convatlas.studies.planning import last_choices

__all__ = ["write_atlas"]

Plain = dict[str, Any]
LARGE = 64
"""Images above so many pixels are not CIFAR's."""


WIDE = 620
"""Blocks of more pixels do not stand beside the drawing of the whole net."""


def write_atlas(
    folder: Path,
    nets: Mapping[str, Plain],
    drawn: Mapping[str, Plain],
    *,
    lineage: Lineage,
    studies: Sequence[Study],
    found: Sequence[Finding] = (),
) -> None:
    """Write all pages.

    Args:
        folder: gets `index.html`, `compare.html`, `training.html` and `nets/<net>.html`; pages link to the reports
            beside it, if they are there.
        nets: the sections `about` and `model` of each net.
        drawn: the anatomy of each, see `convatlas.atlas.anatomy`.
        lineage: what the map shows.
        studies: where the results come from.
        found: what these and earlier studies found.

    Raises:
        UserError: a file of a run is not readable.
    """
    results = results_of(studies)
    members = lineage.members(nets)
    appearances = read_appearances(found)
    home = (folder.parent / "index.html").is_file()
    reported = {each.name for each in studies if (folder.parent / "studies" / each.name / "index.html").is_file()}
    write_text(folder / "index.html", _index(nets, drawn, lineage, members, results, home=home))
    for name in nets:
        page = _card(
            name,
            nets,
            drawn[name],
            lineage=lineage,
            members=members,
            results=results.get(name, []),
            appearances=appearances.get(name, []),
            reported=reported,
            home=home,
        )
        write_text(folder / "nets" / f"{name}.html", page)
    write_text(folder / "compare.html", _compare(nets, drawn, comparisons(studies), home=home))
    write_text(folder / "training.html", _training(studies, home=home))


# ---- the map --------------------------------------------------------------------------------------------------------


def _index(
    nets: Mapping[str, Plain],
    drawn: Mapping[str, Plain],
    lineage: Lineage,
    members: Mapping[str, Sequence[str]],
    results: Mapping[str, Sequence[Result]],
    *,
    home: bool,
) -> str:
    links = {family: f"nets/{found[0]}.html" for family, found in members.items()}
    return render(
        "atlas_index.html.j2",
        home=home,
        scripts=[for_script_element(template_source("atlas_index.js"))],
        map=_svg(draw_map(lineage, links)),
        lineage=lineage,
        members=members,
        nets=nets,
        drawn=drawn,
        results=results,
        years=sorted({family.year for family in lineage.families.values()}),
    )


# ---- a card ---------------------------------------------------------------------------------------------------------


def _card(
    name: str,
    nets: Mapping[str, Plain],
    drawn: Plain,
    *,
    lineage: Lineage,
    members: Mapping[str, Sequence[str]],
    results: Sequence[Result],
    appearances: Sequence[Appearance],
    reported: Collection[str],
    home: bool,
) -> str:
    own = next(family for family, found in members.items() if name in found)
    family = lineage.families[own]
    children = [
        (child, edge.by) for child, other in lineage.families.items() for edge in other.parents if edge.net == own
    ]
    pictures = [picture for result in results[:1] for picture in (filters(result), activation_maps(result)) if picture]
    return render(
        "atlas_card.html.j2",
        home=home,
        name=name,
        about=nets[name]["about"],
        drawn={
            **drawn,
            "whole": _svg(drawn["whole"]),
            "blocks": [{**block, "svg": _svg(block["svg"])} for block in drawn["blocks"]],
        },
        wide=any(int(block["svg"].partition('width="')[2].partition('"')[0]) > WIDE for block in drawn["blocks"]),
        command=_command(name, nets[name]["about"], results),
        family=family,
        others=[other for other in members[own] if other != name],
        parents=[(edge.net, edge.by) for edge in family.parents],
        children=children,
        families=lineage.families,
        first={key: found[0] for key, found in members.items()},
        results=results,
        appearances=appearances,
        reported=reported,
        missing=_missing(results, appearances),
        words=words,
        pictures=pictures,
        titles={other: net["about"]["title"] for other, net in nets.items()},
    )


def _missing(results: Sequence[Result], appearances: Sequence[Appearance]) -> list[tuple[str, str]]:
    """Return each kind of images on which no run of a net has finished, by its title, and the command that plans it."""
    there = {result.study.plan.images for result in results}
    missing: dict[str, str] = {}
    for each in appearances:
        for images, title in each.images.items():
            option = "" if images == "made" else f" images=made,{images}"
            if images not in there:
                missing.setdefault(title, f"python -m convatlas.plan study={each.study}{option}")
    return list(missing.items())


def _command(name: str, about: Plain, results: Sequence[Result]) -> str:
    """Return a command line that trains the net: that of its first finished variant, or on data of its task."""
    if results:
        return " ".join(["python -m convatlas.train", *map(_quoted, last_choices(results[0].variant.overrides))])
    size = (about.get("input_size") or [3, 32, 32])[-1]
    data = {
        "classification": "imagenet data.root=..." if size > LARGE else "cifar10 data.root=...",
        "detection": "coco data.root=..." if size > 4 * LARGE else "digit_scenes",
        "segmentation": "acdc data.root=..." if size > 2 * LARGE else "heart_phantom",
    }
    return f"python -m convatlas.train model={name} data={data[about.get('task') or 'classification']}"


def _quoted(override: str) -> str:
    return f"'{override}'" if set(override) & set("[]{}() *") else override


def _svg(text: str) -> Markup:
    return Markup(text)  # noqa: S704 - our own drawing, its texts are escaped


# ---- side by side ---------------------------------------------------------------------------------------------------


def _compare(nets: Mapping[str, Plain], drawn: Mapping[str, Plain], found: Sequence[Comparison], *, home: bool) -> str:
    drawings = json.dumps({name: drawn[name]["whole"] for name in nets}, sort_keys=True).encode()
    facts = {
        name: {
            "title": net["about"]["title"],
            "year": net["about"].get("year"),
            **{key: drawn[name][key] for key in ("parameters", "macs", "stored_bytes", "convolutions", "joins")},
            "input": net["about"]["input_size"],
        }
        for name, net in nets.items()
    }
    scatters = [(each, charts) for each in found if (charts := _scatters(each))]
    return render(
        "atlas_compare.html.j2",
        home=home,
        scripts=[chart_library(), for_script_element(template_source("atlas_compare.js"))],
        facts=facts,
        groups=[each.plain for each in found],
        drawings=base64.b64encode(gzip.compress(drawings, mtime=0)).decode(),
        curves=_curves(),
        scatters=scatters,
    )


def _scatters(found: Comparison) -> list[Chart]:
    links = {result.variant.key: f"nets/{result.net}.html" for result in _results(found)}
    return trade_offs(found.group, [*PRICES, LATENCY], links)


def _results(found: Comparison) -> list[Result]:
    return [result for each in results_of([found.study]).values() for result in each]


def _curves() -> Chart:
    """Return the chart of validation scores by epoch without its rows, which the page fills in."""
    import altair as alt

    base = alt.Chart(ROWS).encode(
        x=alt.X("e:Q", title="epoch", axis=EPOCHS),
        y=alt.Y("m:Q", title="validation score", scale=alt.Scale(zero=False)),
        color=COLOUR,
        detail="v:N",
    )
    line = base.mark_line(aria=False)
    points = base.mark_circle(aria=False, opacity=0, size=90).encode(tooltip=tooltip(v="variant", e="epoch", m="score"))
    note = "Mean over the seeds of the validation score, epoch by epoch."
    return Chart("Validation score", note, compiled([line, points], [], note))


# ---- films ----------------------------------------------------------------------------------------------------------


def _training(studies: Sequence[Study], *, home: bool) -> str:
    from convatlas.atlas.film import drop_paths, gradient_films, stored_by_depth

    return render(
        "atlas_training.html.j2",
        home=home,
        scripts=[chart_library(), for_script_element(template_source("atlas_charts.js"))],
        films=[drop_paths(), stored_by_depth(), *gradient_films(studies)],
    )
