"""Precision over recall by class: the average precision it gives is COCO's, and the picture stays readable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torchmetrics.detection import MeanAveragePrecision

from convatlas.tasks.detection import average_precision, gather_hits, left_out
from convatlas.tasks.figures import precision_recall

CLASSES = ["background", "cat", "dog", "cow"]


def random_rows(images: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Make true boxes, and detections near them, elsewhere, of wrong classes and several times."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(images):
        corner = rng.uniform(0, 60, (int(rng.integers(0, 6)), 2))
        true = np.concatenate([corner, corner + rng.uniform(10, 30, corner.shape)], axis=1)
        labels = rng.integers(1, 3, len(true))
        elsewhere = rng.uniform([0, 0, 45, 45], [40, 40, 85, 85], (3, 4))
        found = np.concatenate([true, true, elsewhere])
        found += rng.normal(0, 2.5, found.shape)
        found_labels = np.concatenate([labels, labels, rng.integers(1, 4, 3)])
        found_labels[:1] = 3 - found_labels[:1] % 3
        scores = np.sort(rng.uniform(0, 1, len(found)))[::-1]
        order = rng.permutation(len(found))
        rows.append(
            {
                "index": index,
                "boxes": found[order].tolist(),
                "scores": scores.tolist(),
                "labels": found_labels[order].tolist(),
                "true_boxes": true.tolist(),
                "true_labels": labels.tolist(),
            }
        )
    return rows


def by_torchmetrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    recalls = np.linspace(0, 1, 101).tolist()  # torchmetrics' own are rounded to float32, and some lie just above
    metric = MeanAveragePrecision(
        backend="faster_coco_eval", iou_thresholds=[0.5], rec_thresholds=recalls, class_metrics=True
    )
    for row in rows:
        found = {key: torch.tensor(row[key]) for key in ("boxes", "scores", "labels")}
        true = {key: torch.tensor(row[f"true_{key}"]) for key in ("boxes", "labels")}
        found["boxes"], true["boxes"] = found["boxes"].reshape(-1, 4), true["boxes"].reshape(-1, 4)
        true["labels"] = true["labels"].long()
        metric.update([found], [true])
    values = metric.compute()
    per_class = zip(values["classes"].tolist(), values["map_per_class"].tolist(), strict=True)
    return {CLASSES[label]: value for label, value in per_class if value >= 0}


@pytest.mark.parametrize("seed", range(3))
def test_the_average_precision_of_each_class_is_coco_s(seed: int) -> None:
    rows = random_rows(seed=seed)
    ours = {name: average_precision(curve) for name, curve in gather_hits(rows).by_class(CLASSES).items()}
    assert set(ours) == {"cat", "dog"}  # there is no true cow, so that precision is not defined
    assert all(0.2 < value < 0.9 for value in ours.values())
    assert ours == pytest.approx(by_torchmetrics(rows), abs=1e-6)


def test_the_part_of_an_image_is_what_it_moves_the_precision_by() -> None:
    rows = random_rows(seed=5)[:12]

    def mean_precision(chosen: list[dict[str, Any]]) -> float:
        return float(np.mean([average_precision(each) for each in gather_hits(chosen).by_class(CLASSES).values()]))

    without = [mean_precision(rows[:number] + rows[number + 1 :]) for number in range(len(rows))]
    expected = (len(rows) - 1) * (mean_precision(rows) - np.array(without))
    assert np.abs(expected).max() > 0.1
    assert left_out(rows) == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_a_case_computed_by_hand() -> None:
    """Two objects; by falling score: hit, miss, hit. Up to recall 0.5 the precision is 1, then 2/3."""
    curve = np.array([1, 1 / 2, 2 / 3]), np.array([0.5, 0.5, 1.0])
    assert average_precision(curve) == pytest.approx((51 + 50 * 2 / 3) / 101)
    nothing = np.zeros(0), np.zeros(0)
    assert average_precision(nothing) == 0


def test_the_classes_curves_are_parts_of_the_pooled_one() -> None:
    hits = gather_hits(random_rows())
    pooled = hits.curve()
    parts = [hits.curve(label) for label in (1, 2, 3)]
    assert len(pooled[0]) == sum(len(precision) for precision, _ in parts)
    found = [recall[-1] * (hits.true_labels == label).sum() for label, (_, recall) in enumerate(parts, start=1)]
    assert pooled[1][-1] * len(hits.true_labels) == pytest.approx(sum(found))


def legend_of(figure: Figure) -> list[str]:
    [legend] = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_few_classes_have_a_colour_and_a_name_each() -> None:
    hits = gather_hits(random_rows())
    figure = precision_recall(hits.curve(), hits.by_class(CLASSES), "IoU 0.5 or more")
    assert legend_of(figure) == ["all pooled", "cat", "dog"]
    lines = figure.axes[0].lines
    assert len({str(line.get_color()) for line in lines}) == 3
    np.testing.assert_array_equal(lines[1].get_xdata(), hits.curve(1)[1])
    np.testing.assert_array_equal(lines[1].get_ydata(), hits.curve(1)[0])


def test_many_classes_are_grey_behind_the_pooled_curve() -> None:
    curve = np.array([1.0, 0.5]), np.array([0.5, 0.5])
    figure = precision_recall(curve, {str(number): curve for number in range(80)}, "IoU 0.5 or more")
    assert legend_of(figure) == ["all pooled", "each of 80 classes"]
    assert len(figure.axes[0].lines) == 81
