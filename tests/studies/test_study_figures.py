"""What a study may say of the lecture's figures, and what the plan makes of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from convatlas.core.composing import hydra_ready
from convatlas.core.errors import UserError
from convatlas.studies.figures import StudyFigure, check_figures, planned_figures
from convatlas.studies.planning import load_study, planned_runs, study_file, study_names

PRINTED = {
    "test_error": {"cifar10": {"thin": 6.0, "wide": 5.0, "other": 4.0}},
    "params": {"thin": 0.5, "other": 2},
    "by_columns": {"depth": [5, 10], "error": [37.0, 30.0, 29.0]},
    "rate": 0.15,
}
CONFIGS = {
    name: SimpleNamespace(plain=lambda model=model: {"model": model})
    for name, model in {"thin": {"width": 1, "act": "relu"}, "wide": {"width": 4}, "plain": {"bias": True}}.items()
}


def planned(**entries):
    figure = StudyFigure.model_validate({"title": "T", "y": "error", **entries})
    check_figures([figure], list(CONFIGS), PRINTED, "s.yaml")
    [found] = planned_figures([figure], CONFIGS, PRINTED, "s.yaml")
    return found


def test_a_key_of_the_configuration_gives_every_variant_its_place():
    found = planned(x="model.width")
    assert (found["x"], found["x_title"]) == (None, "width")
    points = [{"variant": "thin", "part": None, "x": 1.0}, {"variant": "wide", "part": None, "x": 4.0}]
    assert found["curves"] == {"measured": points}


def test_parts_of_nets_have_numbers_of_their_own_or_their_nets():
    given = planned(x={"thin.column_1": 5, "thin": 20}, x_title="layers")
    assert [(p["part"], p["x"]) for p in given["curves"]["measured"]] == [("column_1", 5), (None, 20)]
    of_net = planned(x="model.width", curves={"parts": ["wide.column_2"]})
    assert of_net["curves"]["parts"] == [{"variant": "wide", "part": "column_2", "x": 4.0}]


def test_a_figure_of_the_runs_is_left_to_the_report():
    found = planned(x="macs", curves={"both": ["thin", "wide"]})
    assert (found["x"], found["x_title"]) == ("macs", None)
    assert [point["x"] for point in found["curves"]["both"]] == [None, None]


@pytest.mark.parametrize(
    ("x", "curve", "points"),
    [
        ("model.width", {"y": "test_error.cifar10"}, [[1, 6], [4, 5]]),
        ("macs", {"y": "test_error.cifar10", "x": "params", "nets": ["thin", "other"]}, [[0.5, 6], [2, 4]]),
        ("macs", {"y": "test_error.cifar10", "x": {"wide": 9}}, [[9, 5]]),
        ("macs", {"y": "by_columns.depth", "x": "by_columns.depth"}, [[5, 5], [10, 10]]),
    ],
)
def test_printed_curves_are_taken_from_the_printed_figures(x, curve, points):
    assert planned(x=x, curves={"c": ["thin", "wide"]}, printed={"P": curve})["printed"] == {"P": points}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"x": {"thim": 1}, "x_title": "w"}, "names no variant of the study: thim. Did you mean thin"),
        ({"x": "macs", "curves": {"c": ["wid.part"]}}, "names no variant of the study: wid.part. Did you mean wide"),
        ({"x": {"thin": 1}, "x_title": "w", "curves": {"c": ["wide"]}}, "has no number for wide; add it to x"),
        ({"x": {"thin": 1}}, "add x_title"),
        ({"x": "model.depth"}, "needs model.depth, but no variant's configuration has such a number"),
        ({"x": "model.bias"}, "needs model.bias, but no variant"),
        ({"x": "model.width", "curves": {"c": ["plain"]}}, "needs model.width, but the configuration of plain has no"),
        (
            {"x": "macs", "printed": {"P": {"y": "test_eror"}}},
            "names test_eror, which is not in the study's printed. Did",
        ),
        ({"x": "macs", "printed": {"P": {"y": "rate"}}}, "printed.rate is neither a list nor figures by net"),
        ({"x": "macs", "printed": {"P": {"y": "params"}}}, "printed.params and its x have no numbers in common"),
        ({"x": "macs", "printed": {"P": {"y": "by_columns.error", "x": "by_columns.depth"}}}, "one as long"),
        ({"x": "macs", "printed": {"P": {"y": "params", "x": "by_columns.depth"}}}, "its x is a list; name one by net"),
        (
            {"x": "macs", "printed": {"P": {"y": "test_error.cifar10", "x": "params", "nets": ["wide"]}}},
            "do not both have wide; name other nets",
        ),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_figure_and_the_remedy(entries, words):
    with pytest.raises(UserError) as raised:
        planned(**entries)
    assert str(raised.value).startswith("s.yaml: the figure 'T'")
    assert words in str(raised.value)


def test_the_points_of_a_grading_are_found_in_what_is_printed():
    with hydra_ready():
        study, scale = load_study("simpsons", "workstation")
    found = study_file(study, scale, [0], [])["grading"]
    assert found["metric"] == "f1_macro"
    assert (found["points"]["0.97"], found["points"]["0.83"], len(found["points"])) == (15, 1, 15)


@pytest.mark.slow
@pytest.mark.parametrize("name", study_names())
def test_the_figures_of_every_study_can_be_planned_at_every_scale(name):
    with hydra_ready():
        for scale_name in load_study(name, "laptop")[0].overrides:
            study, scale = load_study(name, scale_name)
            runs = planned_runs(study, scale, [0], []) if study.figures else []
            figures = study_file(study, scale, [0], runs)["figures"]
            assert [figure["title"] for figure in figures] == [figure.title for figure in study.figures]
            assert all(points for figure in figures for points in figure["curves"].values())
