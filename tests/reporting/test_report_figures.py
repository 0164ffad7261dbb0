"""The lecture's figures, drawn of the runs that the plan names."""

from __future__ import annotations

import json

import pytest
from made_runs import COSTS, MadeVariant, accuracies, make_study

from convatlas.reporting.lecture_figures import lecture_figures
from convatlas.reporting.reading import read_study
from convatlas.reporting.report import write_report


def figure(curves, **options):
    """Make a figure as `plan/<study>.yaml` holds it; `curves` have `(variant, x)`."""
    points = {
        title: [{"variant": variant, "part": None, "x": x} for variant, x in entries]
        for title, entries in curves.items()
    }
    whole = {"title": "Error by width", "x": None, "x_title": "width", "y": "error", "log": [], "printed": {}}
    return whole | {"curves": points} | options


def drawn(tmp_path, variants, *figures):
    return lecture_figures(read_study(*make_study(tmp_path, variants, figures=list(figures))))


def rows(chart):
    return next(source["values"] for source in chart.vega["data"] if source["name"] == "rows")


VARIANTS = {
    "wide": MadeVariant(test=accuracies(0.96, 0.98), title="Wide"),
    "thin": MadeVariant(test=accuracies(0.9, 0.9), title="Thin"),
    "unfinished": MadeVariant(test={}),
}


def test_a_curve_goes_from_left_to_right_through_the_means_with_a_dot_for_each_seed(tmp_path):
    curves = {"width": [("wide", 4), ("unfinished", 2), ("thin", 1)]}
    [drawing] = drawn(tmp_path, VARIANTS, figure(curves))
    [chart] = drawing.charts
    means = [(row["v"], row["x"], row["y"]) for row in rows(chart) if "y" in row]
    assert means == [("Thin", 1, 10), ("Wide", 4, 3)]
    assert [(row["x"], row["s"]) for row in rows(chart) if "s" in row] == [(4, 4), (4, 2)]  # equal seeds need no dots
    assert drawing.lines == (("width", "Thin", "1", "10"), ("width", "Wide", "4", "3 ± 1.4"))
    assert (drawing.axes, drawing.legend) == (("width", "test error, %"), ())


def test_a_figure_of_the_runs_is_written_as_the_lecture_does(tmp_path):
    variants = {
        key: MadeVariant(test=accuracies(0.9), costs=COSTS | {"macs": macs, "activation_bytes": 3e6})
        for key, macs in (("a", 41_000_000), ("b", 500_000))
    }
    curves = {"one": [("a", None), ("b", None)]}
    [drawing] = drawn(tmp_path, variants, figure(curves, x="macs", x_title=None, y="activation_bytes"))
    assert drawing.axes == ("MACs, millions", "saved for backward, MB")
    assert [line[2:] for line in drawing.lines] == [("0.5", "3"), ("41", "3")]


def test_parts_of_a_net_are_points_too(tmp_path):
    points = [{"variant": "net", "part": part, "x": x} for x, part in ((1, "a"), (2, "b"))]
    figures = [figure({}) | {"curves": {"c": points}}]
    study_file, runs = make_study(tmp_path, {"net": MadeVariant(test=accuracies(0.9), title="Net")}, figures=figures)
    path = runs / "overview" / "net" / "seed=0" / "metrics.json"
    parts = {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.75}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parts": parts}))
    [drawing] = lecture_figures(read_study(study_file, runs))
    assert [(net, y) for _, net, _, y in drawing.lines] == [("Net, a", "50"), ("Net, b", "25")]


def test_what_the_lecture_prints_has_axes_of_its_own(tmp_path):
    curves = {"measured": [("thin", 1), ("wide", 4)]}
    [drawing] = drawn(tmp_path, VARIANTS, figure(curves, log=["x"], printed={"CIFAR": [[1, 30.5], [8, 27]]}))
    ours, printed = drawing.charts
    assert [(row["x"], row["y"]) for row in rows(printed)] == [(1, 30.5), (8, 27)]
    assert [name for name, _ in drawing.legend] == ["measured", "CIFAR, printed"]
    assert {row["c"] for row in rows(ours)} & {row["c"] for row in rows(printed)} == set()
    for chart in drawing.charts:
        assert {scale["type"] for scale in chart.vega["scales"] if scale["name"] == "x"} == {"log"}


@pytest.mark.parametrize("log", [[], ["y"]])
def test_a_logarithm_leaves_out_what_is_not_above_zero(tmp_path, log):
    variants = {key: MadeVariant(test=accuracies(value)) for key, value in {"a": 1.0, "b": 0.9, "c": 0.8}.items()}
    [drawing] = drawn(tmp_path, variants, figure({"c": [("a", 1), ("b", 2), ("c", 3)]}, log=log))
    assert [x for _, _, x, _ in drawing.lines] == (["2", "3"] if log else ["1", "2", "3"])


def test_a_figure_of_a_single_net_is_not_drawn(tmp_path):
    curves = {"c": [("thin", 1), ("unfinished", 2)], "from the same net": [("thin", 1)]}
    assert drawn(tmp_path, VARIANTS, figure(curves)) == []


def test_the_page_has_the_figure_and_its_values(tmp_path):
    study_file, runs = make_study(tmp_path, VARIANTS, figures=[figure({"c": [("thin", 1), ("wide", 4)]})])
    write_report(study_file, runs, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert '<a href="#figures">Figures</a>' in page
    assert 'id="figure-1-1"' in page
    assert "<td>3 ± 1.4</td>" in page
