"""Detection: average precision of known predictions, loss terms that add up, hits counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.models.build import build_model
from convatlas.tasks import new_task
from convatlas.tasks.base import joined, rows_of
from convatlas.tasks.detection import DetectionTask, find_hits, gather_hits, top_scoring

CLASSES = ["background", *map(str, range(10))]


class Fixed(nn.Module):
    """A detector that returns prepared detections, image by image."""

    def __init__(self, found: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.found = found

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.found[int(image[0, 0, 0])] for image in images]


def task_for(net: nn.Module | None = None, *overrides: str) -> DetectionTask:
    with hydra_ready():
        run = ["data=digit_scenes", "model=retinanet_small", "recipe=base", "tracking=none", *overrides]
        config = compose_run(run, {"variant": "test", "output_dir": "nowhere"})
    return new_task(build_model(config.model) if net is None else net, config, CLASSES, seed=0)  # type: ignore[return-value]


def objects(boxes: list[list[float]], labels: list[int], scores: list[float] | None = None) -> dict[str, Tensor]:
    named = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }
    return named if scores is None else named | {"scores": torch.tensor(scores)}


def batch_of(targets: list[dict[str, Tensor]], first: int = 0, side: int = 96) -> dict[str, Any]:
    """Images whose first pixel is their number, which `Fixed` looks at."""
    indices = torch.arange(first, first + len(targets))
    return {
        "images": indices[:, None, None, None].expand(-1, 1, side, side).float(),
        "targets": targets,
        "indices": indices,
    }


def evaluate(task: DetectionTask, *batches: dict[str, Any]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    metrics = dict(task.validation_metrics.items())
    columns = joined([task.columns(batch, task.evaluate(batch, metrics)) for batch in batches])
    rows = rows_of(columns)
    plain = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in rows]
    return task.summarise(metrics), plain


TRUE = [objects([[10, 10, 30, 40], [50, 50, 70, 70]], [1, 4]), objects([[5, 5, 25, 25]], [4]), objects([], [])]
PERFECT = [each | {"scores": torch.full((len(each["labels"]),), 0.9)} for each in TRUE]


def test_perfect_predictions_have_an_average_precision_of_one() -> None:
    values, _ = evaluate(task_for(Fixed(PERFECT)), batch_of(TRUE))
    assert values == {"map": 1, "map_50": 1, "map_75": 1, "mar_100": 1}


def test_a_box_of_iou_0_62_counts_at_0_50_and_not_at_0_75() -> None:
    """A box of 10 x 10 against one of 6.2 x 10 within it: found at the thresholds 0.50, 0.55 and 0.60 of ten."""
    task = task_for(Fixed([objects([[0, 0, 6.2, 10]], [2], [0.8])]))
    values, _ = evaluate(task, batch_of([objects([[0, 0, 10, 10]], [2])]))
    assert (values["map_50"], values["map_75"]) == (pytest.approx(1), 0)
    assert values["map"] == pytest.approx(0.3)


def test_a_wrong_class_finds_nothing() -> None:
    task = task_for(Fixed([objects([[0, 0, 10, 10]], [3], [0.8])]))
    values, _ = evaluate(task, batch_of([objects([[0, 0, 10, 10]], [2])]))
    assert values["map_50"] == values["mar_100"] == 0


def test_a_split_without_objects_has_coco_s_minus_one() -> None:
    values, _ = evaluate(task_for(Fixed(PERFECT[2:])), batch_of(TRUE[2:]))
    assert set(values.values()) == {-1}


def test_the_figures_of_a_split_do_not_depend_on_its_batches() -> None:
    found = [
        objects([[12, 10, 30, 40], [0, 0, 9, 9]], [1, 4], [0.5, 0.7]),
        PERFECT[1],
        objects([[0, 0, 5, 5]], [1], [0.6]),
    ]
    whole, rows = evaluate(task_for(Fixed(found)), batch_of(TRUE))
    parts, rows_of_parts = evaluate(task_for(Fixed(found)), batch_of(TRUE[:1]), batch_of(TRUE[1:], first=1))
    assert whole == parts
    assert rows == rows_of_parts


def test_a_row_holds_what_was_found_top_scoring_first_and_what_is_there() -> None:
    found = [objects([[0, 0, 5, 5], [10, 10, 30, 40]], [2, 1], [0.25, 0.75])]
    _, rows = evaluate(task_for(Fixed(found)), batch_of(TRUE[:1]))
    assert rows == [
        {
            "index": 0,
            "boxes": [[10, 10, 30, 40], [0, 0, 5, 5]],
            "scores": [0.75, 0.25],
            "labels": [1, 2],
            "true_boxes": [[10, 10, 30, 40], [50, 50, 70, 70]],
            "true_labels": [1, 4],
        }
    ]


def test_the_hundred_top_scoring_detections_are_kept() -> None:
    scores = torch.linspace(0, 1, 150)
    kept = top_scoring({"boxes": torch.zeros(150, 4), "scores": scores, "labels": torch.arange(150)})
    assert kept["labels"].tolist() == list(range(149, 49, -1))


# ---- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "box_weight"), [([], 1.0), (["+recipe.loss.auxiliary.bbox_regression=2.5"], 2.5)])
def test_the_loss_is_the_weighted_sum_of_the_net_s_terms(weights: list[str], box_weight: float) -> None:
    torch.manual_seed(0)
    terms = task_for(None, *weights).train().losses(batch_of(TRUE[:2]))
    assert set(terms) == {"loss", "classification", "bbox_regression"}
    torch.testing.assert_close(terms["loss"], terms["classification"] + box_weight * terms["bbox_regression"])


# ---- precision and recall -------------------------------------------------------------------------------------------


def row(found: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, Any]:
    named = {name: values.tolist() for name, values in found.items()}
    return named | {f"true_{name}": values.tolist() for name, values in true.items()}


def test_each_object_is_found_once() -> None:
    twice = objects([[10, 10, 30, 40], [10, 10, 30, 39], [50, 50, 70, 70]], [1, 1, 4], [0.9, 0.8, 0.7])
    assert find_hits(row(twice, TRUE[0]), 0.5) == [True, False, True]


@pytest.mark.parametrize(("box", "label", "hit"), [
    ([0, 0, 6, 10], 2, True),
    ([0, 0, 4, 10], 2, False),
    ([0, 0, 6, 10], 3, False),
])  # fmt: skip
def test_a_hit_has_the_class_and_overlaps_by_half(box: list[float], label: int, hit: bool) -> None:
    assert find_hits(row(objects([box], [label], [0.9]), objects([[0, 0, 10, 10]], [2])), 0.5) == [hit]


def test_precision_and_recall_of_a_case_computed_by_hand() -> None:
    """Four objects; by falling score: hit, miss, hit, miss."""
    one = row(objects([[10, 10, 30, 40], [0, 0, 9, 9]], [1, 1], [0.9, 0.1]), TRUE[0])
    other = row(objects([[40, 40, 50, 50], [5, 5, 25, 25]], [4, 4], [0.8, 0.7]), TRUE[1])
    third = row(objects([], [], []), objects([[1, 1, 2, 2]], [1]))
    precision, recall = gather_hits([one, other, third]).curve()
    np.testing.assert_allclose(precision, [1, 1 / 2, 2 / 3, 2 / 4])
    np.testing.assert_allclose(recall, [1 / 4, 1 / 4, 2 / 4, 2 / 4])


def test_figures_read_rows_as_parquet_gives_them_back(tmp_path: Any) -> None:
    found = [objects([[12, 10, 30, 40], [0, 0, 9, 9]], [1, 4], [0.5, 0.25]), PERFECT[1], PERFECT[2]]
    task = task_for(Fixed(found))
    batch = batch_of(TRUE)
    _, rows = evaluate(task, batch)
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    figures = task.figures(batch, pd.read_parquet(tmp_path / "rows.parquet"))
    drawn = figures["samples"].axes
    # The box with a score of 0.25 is not drawn, and so the object that no other finds is drawn as missed.
    assert [len(axes.patches) for axes in drawn] == [2, 1, 0, 2, 1, 0]
    assert [text.get_text() for text in drawn[0].texts] == ["0", "3"]
    assert [text.get_text() for text in drawn[3].texts] == ["0 0.50", "3"]
    assert [patch.get_linestyle() for patch in drawn[3].patches] == ["-", "--"]
    assert drawn[0].patches[0].get_bbox().bounds == (9.5, 9.5, 20, 30)
    line = figures["precision_recall"].axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [1 / 3, 2 / 3, 2 / 3])
