"""One study as one page that needs nothing but itself, and the page that leads to all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convatlas.reporting.charts import HUES, REST, colours
from convatlas.reporting.curves import gradient_chart, inner_curves, learning_curves
from convatlas.reporting.disagreements import disagreements
from convatlas.reporting.findings import findings, on_images, plot, rows, summary, words
from convatlas.reporting.lecture_figures import lecture_figures
from convatlas.reporting.mistakes import apart, mistakes
from convatlas.reporting.origin import cautions, origin, sampling_note
from convatlas.reporting.paired import compare, interval_text, reference_of, signed, told_apart
from convatlas.reporting.printed_numbers import printed_numbers
from convatlas.reporting.rendering import chart_library, for_script_element, render, template_source
from convatlas.reporting.run_pictures import RunPictures, run_pictures
from convatlas.reporting.score_plots import interval_plots, score_plots
from convatlas.reporting.statistics import LOOKS, SHARES
from convatlas.reporting.study import Group, Step, Study, Variant
from convatlas.reporting.tables import further_table, leaders, main_table
from convatlas.reporting.trade_offs import trade_offs
from convatlas.reporting.verdicts import judge, tally, verdict_bar
from convatlas.reporting.wording import DASH, count, listed, spread_text
from convatlas.reporting.years import by_year
from convatlas.studies.planning import study_names


@dataclass(frozen=True)
class Headline:
    """The best variant of a group: its name, its score with the standard deviation, and what that is."""

    title: str
    score: str
    meaning: str


def render_report(study: Study, runs: Path) -> str:
    """Return the page of a study; pictures come from below `runs`.

    Raises:
        UserError: a picture is not readable, or a claim cannot be read.
    """
    pairs = zip(study.groups, run_pictures(study.groups, runs), strict=True)
    sections = [_section(study, group, pictures, number) for number, (group, pictures) in enumerate(pairs, start=1)]
    figures = lecture_figures(study)
    has_charts = any(section["charts"] for section in sections) or bool(figures)
    return render(
        "report.html.j2",
        scripts=[*([chart_library()] if has_charts else []), for_script_element(template_source("report.js"))],
        study=study,
        about=about_page(study.name),
        data=list(dict.fromkeys(group.data for group in study.groups)),
        sections=sections,
        figures=figures,
        cautions=cautions(study),
        printed=printed_numbers(study),
        steps=_steps(study),
        claims=judge(study)[: len(study.plan.claims)],
        looks=listed([f"{seeds}" for seeds in LOOKS]),
        levels=listed([f"{100 * (1 - share):g}" for share in SHARES]),
        calibration=study.plan.calibration,
        tried=list(dict.fromkeys(c for each in study.plan.calibration.variants.values() for c in each.scores)),
        origin=origin(study),
        net_deviations=_net_deviations(study),
        shared=_shared_overrides(study),
        hues=HUES,
        failures_of=_failures,
        signed=signed,
        interval_text=interval_text,
        images_text=_images_text,
    )


def about_page(study: str) -> str | None:
    """Return the address, from a report's folder, of the page that explains its study; None where there is none."""
    own = study.partition("-")[0]
    return f"../../../docs/studies/{own}.md" if own in study_names() else None


def render_index(studies: Sequence[Study], kept: Sequence[Study] = (), data: Sequence[str] = ()) -> str:
    """Return the page that leads to all studies, kept reports of earlier plans after those of the plan, and to data."""
    shown = []
    for study in (*studies, *kept):
        headlines = [(group.title, best) for group in study.groups if (best := headline(group))]
        judged = judge(study)
        shown.append((study, study in kept, headlines, tally(judged), verdict_bar(judged)))
    found = [each for study in (*studies, *kept) for each in findings(study)]
    return render(
        "index.html.j2",
        studies=shown,
        data=data,
        rows=sorted(rows(found), key=lambda row: row.study),
        images=list(dict.fromkeys(each.images for each in found)),
        summary=summary(found),
        plot=plot,
        words=words,
        on_images=on_images,
    )


def headline(group: Group) -> Headline | None:
    """Name the best variant of a group and its score; None while no run has finished."""
    found = group.best.test(group.score) if group.best else None
    if group.best is None or found is None:
        return None
    meaning = f"{group.metric.title}, {count(found.n, 'seed')}"
    return Headline(group.best.title, spread_text(group.metric, found), meaning)


def _steps(study: Study) -> list[dict[str, Any]]:
    """Return what the page shows of each step of a path of development: its finding, and what it costs."""
    variants = {variant.key: variant for variant in study.variants}
    steps = study.plan.steps
    found = findings(study)[-len(steps) :] if steps else []

    def ratio(step: Step, cost: Callable[[Variant], float | None]) -> str:
        before, after = cost(variants[step.before]), cost(variants[step.after])
        return f"{after / before:.2g}" if before and after else DASH

    return [
        {
            "idea": step.idea,
            "before": variants[step.before].title,
            "after": variants[step.after].title,
            "plot": plot(each),
            "words": words(each).split(", ")[0],
            "verdict": each.verdict,
            "parameters": ratio(step, lambda variant: variant.cost("parameters")),
            "macs": ratio(step, lambda variant: variant.macs),
        }
        for step, each in zip(steps, found, strict=True)
    ]


def _section(study: Study, group: Group, pictures: Sequence[RunPictures], number: int) -> dict[str, Any]:
    """Return what the page shows of one group."""
    scores, score_ends = score_plots(group)
    gradients = gradient_chart(group)
    charts = {
        "curves": learning_curves(group),
        "inner": [*inner_curves(group), *([gradients] if gradients else [])],
        "years": by_year(study, group),
        "trade_offs": trade_offs(group),
    }
    colour = colours(group)
    return {
        "anchor": f"group-{number}",
        "group": group,
        "headline": headline(group),
        "equals": _equals(group),
        "apart": told_apart(group),
        "table": main_table(group),
        "further": further_table(group),
        "paired": _paired(group),
        "disagreements": disagreements(group),
        "apart_strips": apart(group),
        "mistakes": mistakes(group),
        "scores": scores,
        "score_ends": score_ends,
        "charts": charts if any(charts.values()) else None,
        "pictures": pictures,
        "sampling": sampling_note(group),
        "colours": colour,
        "coloured": [variant for variant in group.variants if colour[variant.key] != REST],
        "has_grey": any(variant.runs and colour[variant.key] == REST for variant in group.variants),
    }


def _paired(group: Group) -> dict[str, Any] | None:
    """Compare with the reference; None where there is nothing to compare."""
    reference, pairs = reference_of(group), compare(group)
    if reference is None or not any(pair.seeds for pair in pairs):
        return None
    plots, ends = interval_plots(pairs)
    with_images = [pair.only_variant is not None for pair in pairs if pair.seeds]
    return {
        "reference": reference,
        "pairs": pairs,
        "plots": plots,
        "ends": [signed(end, group.metric) for end in ends],
        "by_images": any(with_images),
        "note": _how_paired(with_images),
    }


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
        f"{how} Where four variants or more have a score between 0 and 1, the variance over the seeds draws on all of "
        "theirs (moderated t). A single seed has no interval. The vertical line is no difference. Of twenty such "
        "intervals about one misses the truth by chance."
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
    """Name the variants that are not significantly worse than the best."""
    leading = leaders([variant.test(group.score) for variant in group.variants], group.metric)
    others = [v.title for v, leads in zip(group.variants, leading, strict=True) if leads and v is not group.best]
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
        if deviations := [str(deviation) for deviation in about.get("deviations") or ()]:
            title = str(about.get("title") or variant.title)
            nets[title] = (title, str(about.get("paper") or ""), deviations)
    return list(nets.values())
