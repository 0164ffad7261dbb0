"""One study as one page that needs nothing but itself, and the page that leads to all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from convatlas.reporting.charts import HUES, REST, Chart, colours
from convatlas.reporting.disagreements import Disagreements, disagreements
from convatlas.reporting.gradients import gradient_chart
from convatlas.reporting.learning_curves import inner_curves, learning_curves
from convatlas.reporting.lecture_figures import lecture_figures
from convatlas.reporting.paired import Drawn, Pair, compare, drawn_intervals, interval_text, reference_of, signed
from convatlas.reporting.pictures import Plate, plates
from convatlas.reporting.printed import printed_figures
from convatlas.reporting.provenance import cautions, provenance, sampling_note
from convatlas.reporting.rendering import render, template_source
from convatlas.reporting.results import Group, Study
from convatlas.reporting.strips import Strip, strips
from convatlas.reporting.tables import Table, further_table, leaders, main_table, tested
from convatlas.reporting.trade_offs import trade_offs
from convatlas.reporting.variants import Variant
from convatlas.reporting.verdicts import judge, tally
from convatlas.reporting.wording import DASH, Metric, count, listed


@dataclass(frozen=True)
class Headline:
    """The best variant of a group: its name, its score with the deviation, and what that is."""

    title: str
    figure: str
    meaning: str


@dataclass(frozen=True)
class Paired:
    """The comparison of each variant with the reference."""

    reference: Variant
    pairs: Sequence[Pair]
    drawn: Sequence[Drawn]
    ends: tuple[str, str]
    metric: Metric
    by_images: bool
    note: str


@dataclass(frozen=True)
class Section:
    """What the page shows of one group."""

    anchor: str
    group: Group
    headline: Headline | None
    equals: str
    table: Table
    further: Table
    paired: Paired | None
    disagreements: Disagreements | None
    strips: Sequence[Strip]
    strip_ends: tuple[str, str]
    curves: Sequence[Chart]
    inner: Sequence[Chart]
    trade_offs: Sequence[Chart]
    plates: Sequence[Plate]
    sampling: str
    colours: dict[str, str]

    @property
    def heading(self) -> str:
        """Task and data set."""
        return f"{self.group.task.capitalize()} on {self.group.data}"

    @property
    def coloured(self) -> list[Variant]:
        """The variants with a colour of their own."""
        return [variant for variant in self.group.variants if self.colours[variant.key] != REST]

    @property
    def has_grey(self) -> bool:
        """Whether there are too many variants for each to have a colour."""
        return any(variant.runs and self.colours[variant.key] == REST for variant in self.group.variants)


def render_report(study: Study, runs: Path) -> str:
    """Return the page of a study; pictures come from below `runs`.

    Raises:
        UserError: a picture is not readable.
    """
    all_plates = plates(study.groups, runs)
    pairs = zip(study.groups, all_plates, strict=True)
    sections = [_section(group, shown, number) for number, (group, shown) in enumerate(pairs, start=1)]
    figures = lecture_figures(study)
    charts = any(section.curves or section.inner or section.trade_offs for section in sections) or bool(figures)
    return render(
        "report.html.j2",
        scripts=[*([_chart_library()] if charts else []), _own_script()],
        study=study,
        sections=sections,
        figures=figures,
        cautions=cautions(study),
        printed=printed_figures(study),
        claims=judge(study),
        provenance=provenance(study),
        net_deviations=_net_deviations(study),
        shared=_shared_overrides(study),
        hues=HUES,
        failures_of=_failures,
        signed=signed,
        interval_text=interval_text,
        images_text=_images_text,
    )


def render_index(studies: Sequence[Study]) -> str:
    """Return the page that leads to all studies."""
    shown = []
    for study in studies:
        headlines = [(f"{group.task.capitalize()} on {group.data}", headline(group)) for group in study.groups]
        best_of = [(place, best) for place, best in headlines if best is not None]
        shown.append((study, best_of, tally(judge(study))))
    return render("index.html.j2", studies=shown)


def headline(group: Group) -> Headline | None:
    """Name the best variant of a group and its score; None while no run has finished."""
    best = best_variant(group)
    found = tested(best, group.score) if best else None
    if best is None or found is None:
        return None
    metric = Metric(group.score)
    return Headline(best.title, metric.spread_text(found), f"{metric.title}, {count(found.n, 'seed')}")


def best_variant(group: Group) -> Variant | None:
    """Return the variant with the best mean test score; None while no run has finished."""
    found = [(tested(variant, group.score), variant) for variant in group.variants]
    scored = [(spread.mean, variant) for spread, variant in found if spread is not None and math.isfinite(spread.mean)]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def _section(group: Group, shown: Sequence[Plate], number: int) -> Section:
    found, ends = strips(group)
    return Section(
        anchor=f"group-{number}",
        group=group,
        headline=headline(group),
        equals=_equals(group),
        table=main_table(group),
        further=further_table(group),
        paired=_paired(group),
        disagreements=disagreements(group),
        strips=found,
        strip_ends=ends,
        curves=learning_curves(group),
        inner=[*inner_curves(group), *([gradients] if (gradients := gradient_chart(group)) else [])],
        trade_offs=trade_offs(group),
        plates=shown,
        sampling=sampling_note(group),
        colours=colours(group),
    )


def _paired(group: Group) -> Paired | None:
    """Compare with the reference; None where there is nothing to compare."""
    reference, pairs = reference_of(group), compare(group)
    if reference is None or not any(pair.seeds for pair in pairs):
        return None
    metric = Metric(group.score)
    drawn, (low, high) = drawn_intervals(pairs, metric)
    with_images = [pair.only_variant is not None for pair in pairs if pair.seeds]
    ends = (signed(low, metric), signed(high, metric))
    return Paired(reference, pairs, drawn, ends, metric, any(with_images), _how_paired(with_images))


def _how_paired(with_images: Sequence[bool]) -> str:
    if any(with_images):
        how = (
            "The difference of the accuracies on the same seeds and the same test images. Its 95 % interval takes both "
            "as samples: other seeds and other images from the same source would move it (analysis of variance, seeds "
            "crossed with images, with Satterthwaite's degrees of freedom)."
        )
        if not all(with_images):
            how += " Where a run left no predictions of these images, it is over the seeds alone (Student's t)."
    else:
        how = "The difference of the scores on the same seeds, with the 95 % interval over them (Student's t)."
    return (
        f"{how} A single seed has no interval. The vertical line is no difference. Of twenty such intervals about one "
        "misses the truth by chance."
    )


def _images_text(images: float | None) -> str:
    """Write a mean number of images."""
    return DASH if images is None else f"{images:.1f}"


def _failures(variant: Variant) -> list[tuple[str, str]]:
    """List why seeds failed, each reason once, with its seeds: `seeds 0 and 2`."""
    seeds: dict[str, list[str]] = {}
    for seed, error in variant.failures.items():
        seeds.setdefault(error, []).append(str(seed))
    return [(error, f"seed{'s' * (len(found) > 1)} {listed(found)}") for error, found in seeds.items()]


def _equals(group: Group) -> str:
    """Name the variants that noise alone could set apart from the best."""
    best = best_variant(group)
    leading = leaders([tested(variant, group.score) for variant in group.variants])
    others = [v.title for v, leads in zip(group.variants, leading, strict=True) if leads and v is not best]
    return listed(others) if len(others) <= 6 else f"{len(others)} others, bold in the table"


def _shared_overrides(study: Study) -> list[str]:
    """List the overrides that all variants have."""
    first, *others = study.variants
    return [override for override in first.overrides if others and all(override in v.overrides for v in others)]


def _net_deviations(study: Study) -> list[tuple[str, str, list[str]]]:
    """List title, paper and deviations of each net that differs from its paper, each net once."""
    nets: dict[str, tuple[str, str, list[str]]] = {}
    for variant in study.variants:
        about = variant.about
        deviations = [str(deviation) for deviation in about.get("deviations") or ()]
        if deviations:
            title = str(about.get("title") or variant.title)
            nets[title] = (title, str(about.get("paper") or ""), deviations)
    return list(nets.values())


# ---- scripts ---------------------------------------------------------------------------------------------------------


@cache
def _chart_library() -> str:
    """Return Vega with its embedding, once for all charts of a page."""
    import vl_convert

    return _for_script_element(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _own_script() -> str:
    return _for_script_element(template_source("report.js"))


def _for_script_element(script: str) -> str:
    """Keep a script from ending its element, or from opening a comment in which `</script>` is not seen."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--").strip()
