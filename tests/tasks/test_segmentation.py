"""Segmentation: Dice by hand, counted over the split, loss terms that add up, classes that are absent."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.errors import UserError
from convatlas.data.edges import edge_targets
from convatlas.models.segmentation.saunet import SAUNet
from convatlas.models.segmentation.unet import UNet
from convatlas.tasks import new_task
from convatlas.tasks.base import joined, rows_of
from convatlas.tasks.losses import edge_loss, soft_dice_loss, weighted_sum
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
    return new_task(net, config, classes or CLASSES, seed=0)  # type: ignore[return-value]


def batch_of(masks: Tensor, first: int = 0) -> dict[str, Tensor]:
    """Images whose first pixel is their number, which `Fixed` looks at."""
    indices = torch.arange(first, first + len(masks))
    images = indices[:, None, None, None].expand(-1, 1, *masks.shape[1:]).float()
    return {"images": images, "masks": masks, "indices": indices}


def evaluate(task: SegmentationTask, *batches: dict[str, Tensor]) -> tuple[dict[str, float], list[dict]]:
    metrics = dict(task.validation_metrics.items())
    columns = joined([task.columns(batch, task.evaluate(batch, metrics)) for batch in batches])
    return task.summarise(metrics), rows_of(task.complete(columns))


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
    dice = {key: value for key, value in rows[1].items() if not key.startswith(("hausdorff", "part"))}
    assert dice == {"index": 1, "dice": pytest.approx(2 / 5), "dice_disc": pytest.approx(2 / 5), "dice_ring": None}


def test_the_part_of_an_image_is_the_derivative_of_the_dice_by_its_weight() -> None:
    """Of the disc `2 (2 s - 0.6 a) / 10` with (s, a) = (2, 5) and (1, 5); of the ring the second image has nothing."""
    _, rows = evaluate(task_for(Fixed(PREDICTED)), batch_of(TRUE))
    assert [row["part_dice"] for row in rows] == pytest.approx([0.1, -0.1])


def test_distances_are_means_over_images_that_have_the_class() -> None:
    """Image 0: the disc's (0, 2) is 1 from (0, 1), the ring's (1, 1) is 1 from (1, 0); image 1 has no ring."""
    values, rows = evaluate(task_for(Fixed(PREDICTED)), batch_of(TRUE))
    assert rows[0]["hausdorff_px_disc"] == rows[0]["hausdorff_px_ring"] == rows[0]["hausdorff_px"] == 1
    assert rows[1]["hausdorff_px_disc"] == 2
    assert rows[1]["hausdorff_px_ring"] is None
    assert values["hausdorff_px_disc"] == pytest.approx((1 + 2) / 2)
    assert values["hausdorff_px_ring"] == 1
    assert values["hausdorff_px"] == pytest.approx((1.5 + 1) / 2)


def test_a_single_foreground_class_has_its_figures() -> None:
    net = UNet(base_width=2, depth=1, padded=True, num_classes=2).eval()
    masks = torch.tensor([[[0, 1, 1, 0]] * 2])
    batch = {"images": torch.randn(1, 1, 2, 4), "masks": masks, "indices": torch.arange(1)}
    values, [row] = evaluate(task_for(net, classes=["background", "disc"]), batch)
    assert values["hausdorff_px"] == values["hausdorff_px_disc"] == row["hausdorff_px_disc"]
    assert values["dice"] == values["dice_disc"] == pytest.approx(row["dice_disc"])


def test_distances_are_in_millimetres_where_the_pixels_size_is_known() -> None:
    spacing = torch.tensor([[1.0, 1.5], [1.0, 2.0]])
    values, rows = evaluate(task_for(Fixed(PREDICTED)), batch_of(TRUE) | {"spacing": spacing})
    assert rows[0]["hausdorff_mm_disc"] == 1.5
    assert rows[1]["hausdorff_mm_disc"] == 4
    assert values["hausdorff_mm_disc"] == pytest.approx((1.5 + 4) / 2)
    assert not any("px" in name for name in values)


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


# ---- nets that predict edges, and weights of classes ----------------------------------------------------------------


def saunet(**other: bool) -> SAUNet:
    torch.manual_seed(0)
    tiny = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "stem_width": 8, "decoder_width": 4, "shape_width": 8}
    return SAUNet(**tiny, num_classes=3, in_channels=2, **other)  # type: ignore[arg-type]


def square_batch() -> dict[str, Tensor]:
    masks = torch.zeros(2, 32, 32, dtype=torch.int64)
    masks[0, 8:20, 8:20] = 1
    masks[1, 4:12, 10:30] = 2
    edges = torch.from_numpy(edge_targets(masks.numpy().astype("uint8")))[:, None].float()
    return {"images": torch.rand(2, 2, 32, 32), "masks": masks, "edges": edges, "indices": torch.arange(2)}


@pytest.mark.parametrize(("weights", "edge"), [([], 1.0), (["+recipe.loss.auxiliary.edge=0.3"], 0.3)])
def test_the_edges_of_a_net_enter_the_loss_with_their_weight(weights: list[str], edge: float) -> None:
    task, batch = task_for(saunet().train(), *weights), square_batch()
    terms = task.losses(batch)
    assert set(terms) == {"loss", "cross_entropy", "dice", "edge"}
    torch.testing.assert_close(terms["loss"], terms["cross_entropy"] + terms["dice"] + edge * terms["edge"])


def test_the_edge_term_is_the_mean_cross_entropy_of_pixels() -> None:
    logits, edges = torch.tensor([[[[2.0, -1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert edge_loss(logits, edges).item() == pytest.approx(expected)


def test_evaluation_judges_the_same_loss_and_the_edges() -> None:
    net, batch = saunet().eval(), square_batch()
    task = task_for(net)
    values, _ = evaluate(task, batch)
    inspected = net.inspect(batch["images"])
    assert inspected.edges is not None
    assert values["loss"] == pytest.approx(task._losses(inspected.logits, inspected.edges, batch)["loss"].item())
    found, true = inspected.edges > 0, batch["edges"] > 0
    overlap = 2 * (found & true).sum() / (found.sum() + true.sum())
    assert values["edge_dice"] == pytest.approx(overlap.item())


def test_without_a_shape_stream_there_is_no_edge_term() -> None:
    task, batch = task_for(saunet(shape_stream=False).train()), square_batch()
    assert set(task.losses(batch)) == {"loss", "cross_entropy", "dice"}
    assert "edge_dice" not in evaluate(task_for(saunet(shape_stream=False).eval()), batch)[0]


def test_figures_show_edges_and_attention_over_the_image_alone() -> None:
    task, batch = task_for(saunet().eval()), square_batch()
    batch["images"][:, 1] = 9.0  # the channel of the Canny edges must not set the range of greys
    _, rows = evaluate(task, batch)
    figures = task.figures(batch, pd.DataFrame(rows))
    drawn = figures["shapes"].axes
    assert [axes.get_title() for axes in drawn[::2]] == [
        "image",
        "true edges",
        "predicted edges",
        *(f"attention {side} x {side}" for side in (2, 4, 8, 16)),
    ]
    assert (drawn[2].images[1].get_array() == batch["edges"][0, 0].numpy()).all()
    assert drawn[0].images[0].get_array().max() == 1
    without = task_for(saunet(shape_stream=False, attention=False).eval())
    assert "shapes" not in without.figures(batch, pd.DataFrame(rows))


def test_class_weights_are_those_of_the_cross_entropy() -> None:
    torch.manual_seed(0)
    net = UNet(base_width=2, depth=1, padded=True, num_classes=3).eval()
    batch = {"images": torch.randn(1, 1, 2, 4), "masks": torch.tensor([[[0, 1, 2, 0]] * 2]), "indices": torch.arange(1)}
    found = task_for(net, "+recipe.loss.class_weights=[1,4,5]").losses(batch)["cross_entropy"]
    chosen = -net(batch["images"]).log_softmax(1).gather(1, batch["masks"][:, None])[:, 0]
    weights = torch.tensor([1.0, 4.0, 5.0])[batch["masks"]]
    torch.testing.assert_close(found, (chosen * weights).sum() / weights.sum())


def test_class_weights_of_another_number_are_refused() -> None:
    with pytest.raises(UserError, match=r"recipe\.loss\.class_weights has 2 weights for 3 classes; .* disc, ring"):
        task_for(Fixed(TRUE), "+recipe.loss.class_weights=[1,2]")


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
    assert set(figures) == {"samples", "dice", "hausdorff_px"}
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
