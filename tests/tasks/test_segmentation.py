"""Segmentation: Dice by hand, counted over the split, loss terms that add up, classes that are absent."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.composing import compose_run, hydra_ready
from convatlas.errors import UserError
from convatlas.models.segmentation.unet import UNet
from convatlas.tasks.losses import soft_dice_loss, weighted_sum
from convatlas.tasks.segmentation import SegmentationTask, count_pixels

CLASSES = ["background", "disc", "ring"]


class Fixed(nn.Module):
    """A net that gives one-hot logits of prepared masks, whatever the images are."""

    def __init__(self, predictions: Tensor) -> None:
        super().__init__()
        self.predictions = predictions

    def forward(self, images: Tensor) -> Tensor:
        return 50.0 * F.one_hot(self.predictions[images[:, 0, 0, 0].long()], 3).permute(0, 3, 1, 2).float()


def task_for(net: nn.Module, *overrides: str, classes: list[str] | None = None) -> SegmentationTask:
    with hydra_ready():
        run = ["data=heart_phantom", "model=unet_small", "recipe=base", "tracking=none", *overrides]
        config = compose_run(run, {"variant": "test", "output_dir": "nowhere"})
    return SegmentationTask(net, config, classes or CLASSES, seed=0)


def batch_of(masks: Tensor, first: int = 0) -> dict[str, Tensor]:
    """Images whose first pixel is their number, which `Fixed` looks at."""
    indices = torch.arange(first, first + len(masks))
    images = indices[:, None, None, None].expand(-1, 1, *masks.shape[1:]).float()
    return {"images": images, "masks": masks, "indices": indices}


def evaluate(task: SegmentationTask, *batches: dict[str, Tensor]) -> tuple[dict[str, float], list[dict]]:
    metrics = task.new_metrics()
    rows = [row for batch in batches for row in task.evaluate(batch, metrics)]
    return task.summarise(metrics), rows


# Two images of 2 x 3 pixels. Class 1: shared 2 and 1, predicted 3 and 1, true 2 and 4.
TRUE = torch.tensor([[[1, 1, 0], [2, 2, 0]], [[1, 1, 1], [1, 0, 0]]])
PREDICTED = torch.tensor([[[1, 1, 1], [2, 0, 0]], [[1, 0, 0], [0, 0, 0]]])


def test_dice_and_iou_of_a_case_computed_by_hand() -> None:
    values, _ = evaluate(task_for(Fixed(PREDICTED)), batch_of(TRUE))
    assert values["dice_disc"] == pytest.approx(2 * 3 / (4 + 6))
    assert values["dice_ring"] == pytest.approx(2 * 1 / (1 + 2))
    assert values["dice"] == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert values["iou"] == pytest.approx((3 / 7 + 1 / 2) / 2)


def test_a_row_has_the_dice_of_its_own_image() -> None:
    _, rows = evaluate(task_for(Fixed(PREDICTED)), batch_of(TRUE))
    assert [row["index"] for row in rows] == [0, 1]
    assert rows[0]["dice_disc"] == pytest.approx(2 * 2 / (3 + 2))
    assert rows[0]["dice_ring"] == pytest.approx(2 * 1 / (1 + 2))
    assert rows[0]["dice"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert rows[1] == {"index": 1, "dice": pytest.approx(2 / 5), "dice_disc": pytest.approx(2 / 5), "dice_ring": None}


def test_the_figures_of_a_split_do_not_depend_on_its_batches() -> None:
    task = task_for(Fixed(PREDICTED))
    whole, _ = evaluate(task, batch_of(TRUE))
    parts, _ = evaluate(task, batch_of(TRUE[:1]), batch_of(TRUE[1:], first=1))
    assert {k: v for k, v in whole.items() if k != "loss"} == {k: v for k, v in parts.items() if k != "loss"}


def test_a_perfect_prediction_has_dice_and_iou_of_one() -> None:
    values, _ = evaluate(task_for(Fixed(TRUE)), batch_of(TRUE))
    assert values["dice"] == values["iou"] == values["dice_disc"] == values["dice_ring"] == 1
    assert values["loss"] == pytest.approx(0, abs=1e-6)


def test_a_class_in_neither_truth_nor_prediction_has_no_value_and_does_not_enter_the_mean() -> None:
    no_rings = TRUE.where(TRUE != 2, 0)
    values, rows = evaluate(task_for(Fixed(no_rings)), batch_of(no_rings))
    assert "dice_ring" not in values
    assert values["dice"] == values["dice_disc"] == 1
    assert rows[0]["dice_ring"] is None


def test_a_class_that_is_only_predicted_counts_as_wrong() -> None:
    values, _ = evaluate(task_for(Fixed(TRUE)), batch_of(TRUE.where(TRUE != 2, 0)))
    assert values["dice_ring"] == 0
    assert values["dice"] == pytest.approx(0.5)


def test_where_nothing_is_defined_the_mean_is_zero_and_finite() -> None:
    empty = torch.zeros_like(TRUE)
    values, rows = evaluate(task_for(Fixed(empty)), batch_of(empty))
    assert values["dice"] == values["iou"] == 0
    assert rows[0]["dice"] is None


# ---- the loss -------------------------------------------------------------------------------------------------------


def test_soft_dice_of_a_case_computed_by_hand() -> None:
    """Two pixels and classes: p = (0.8, 0.2) and (0.4, 0.6), truth 0 and 1; one pixel of smoothing."""
    probabilities = torch.tensor([[[[0.8, 0.4]], [[0.2, 0.6]]]])
    expected = 1 - ((2 * 0.8 + 1) / (1.2 + 1 + 1) + (2 * 0.6 + 1) / (0.8 + 1 + 1)) / 2
    assert soft_dice_loss(probabilities, torch.tensor([[[0, 1]]])).item() == pytest.approx(expected)


def test_a_class_absent_from_the_batch_costs_nothing_when_it_is_not_predicted() -> None:
    probabilities = F.one_hot(torch.tensor([[[0, 1, 1]]]), 3).permute(0, 3, 1, 2).float()
    assert soft_dice_loss(probabilities, torch.tensor([[[0, 1, 1]]])).item() == 0


@pytest.mark.parametrize(("weights", "expected"), [
    ([], (1.0, 1.0)),
    (["+recipe.loss.auxiliary.dice=0.25"], (1.0, 0.25)),
    (["+recipe.loss.auxiliary.dice=0", "+recipe.loss.auxiliary.cross_entropy=3"], (3.0, 0.0)),
])  # fmt: skip
def test_the_loss_is_the_weighted_sum_of_its_terms(weights: list[str], expected: tuple[float, float]) -> None:
    torch.manual_seed(0)
    net = UNet(base_width=2, depth=1, padded=True, num_classes=3)
    batch = {
        "images": torch.randn(2, 1, 2, 4),
        "masks": torch.tensor([[[0, 1, 2, 0]] * 2] * 2),
        "indices": torch.arange(2),
    }
    terms = task_for(net.eval(), *weights).losses(batch)
    assert set(terms) == {"loss", "cross_entropy", "dice"}
    assert terms["dice"].item() > 0
    total = expected[0] * terms["cross_entropy"] + expected[1] * terms["dice"]
    torch.testing.assert_close(terms["loss"], total)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(net(batch["images"]), batch["masks"]))


def test_a_weight_without_a_term_is_named() -> None:
    with pytest.raises(UserError, match=r"recipe\.loss\.auxiliary\.edge=1\.0: .* it has cross_entropy, dice"):
        weighted_sum({"cross_entropy": torch.zeros(()), "dice": torch.zeros(())}, {"edge": 1.0})


def test_a_net_with_a_smaller_output_is_judged_on_the_middle_of_the_mask() -> None:
    """The mask is wrong in the margin and right in the middle."""
    values, _ = evaluate(task_for(Fixed(TRUE)), batch_of(F.pad(TRUE, (2, 2, 1, 1), value=2)))
    assert values["dice"] == values["iou"] == 1


def test_the_paper_s_u_net_is_trained_on_the_middle_of_the_mask() -> None:
    torch.manual_seed(0)
    net = UNet(base_width=2, depth=1, num_classes=3).eval()
    masks = torch.randint(0, 3, (1, 24, 24))
    batch = {"images": torch.randn(1, 1, 24, 24), "masks": masks, "indices": torch.arange(1)}
    expected = F.cross_entropy(net(batch["images"]), masks[:, 8:16, 8:16])
    torch.testing.assert_close(task_for(net).losses(batch)["cross_entropy"], expected)


def test_counts_of_classes_add_up_to_the_pixels() -> None:
    counts = count_pixels(PREDICTED, TRUE, 3)
    assert counts.predicted.sum(1).tolist() == counts.true.sum(1).tolist() == [6, 6]
    assert counts.shared.sum(1).tolist() == (PREDICTED == TRUE).sum((1, 2)).tolist()


def test_figures_show_images_truth_and_prediction() -> None:
    task = task_for(Fixed(PREDICTED))
    batch = batch_of(TRUE)
    _, rows = evaluate(task, batch)
    figures = task.figures(batch, pd.DataFrame(rows))
    assert set(figures) == {"samples", "dice"}
    drawn = [axes for axes in figures["samples"].axes if axes.images]
    assert [len(axes.images) for axes in drawn] == [1, 1, 2, 2, 2, 2]
    true, predicted = (axes.images[1].get_array() for axes in (drawn[2], drawn[4]))
    assert ((true[..., 3] > 0) == (TRUE[0] > 0).numpy()).all()
    assert ((predicted[..., 3] > 0) == (PREDICTED[0] > 0).numpy()).all()
    boxes = figures["dice"].axes[0]
    assert [label.get_text() for label in boxes.get_xticklabels()] == ["disc", "ring"]


def test_an_undefined_dice_is_not_a_number() -> None:
    counts = count_pixels(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), 2)
    assert math.isnan(counts.dice()[0, 1])
    assert math.isnan(counts.iou()[0, 1])
