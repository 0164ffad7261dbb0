"""The table of metrics."""

import pytest
from torchmetrics import MeanAbsoluteError, MeanMetric, R2Score

from convatlas.core.metrics import direction, measured, metric

TABLE = {
    "accuracy": ("accuracy, %", "max"),
    "f1_macro": ("macro F1, %", "max"),
    "map_50": ("mAP@.5, %", "max"),
    "map_small": ("mAP, small, %", "max"),
    "mar_100": ("mAR, 100, %", "max"),
    "dice_right_ventricle": ("Dice, right ventricle, %", "max"),
    "edge_dice": ("Dice of the edges, %", "max"),
    "calibration_error": ("calibration error, %", "min"),
    "loss": ("loss", "min"),
    "hausdorff_mm": ("Hausdorff distance in mm", "min"),
    "hausdorff_px_right_ventricle": ("Hausdorff distance in px, right ventricle", "min"),
    "mean_squared_error": ("mean squared error", "min"),
    "box_loss": ("box loss", "min"),
    "active_blocks": ("active blocks", None),
}


@pytest.mark.parametrize("prefix", ["", "val/", "test/"])
@pytest.mark.parametrize(("name", "looks"), TABLE.items())
def test_every_metric_has_a_title_a_unit_and_a_direction(prefix, name, looks):
    found = metric(prefix + name)
    assert (found.name, found.axis, found.direction) == (name, *looks)


@pytest.mark.parametrize(
    ("name", "own", "expected"),
    [
        ("r2", R2Score(), "max"),
        ("mae", MeanAbsoluteError(), "min"),
        ("anything", MeanMetric(), None),
        ("recovered_error", R2Score(), "max"),  # what the metric says counts for more than its name
        ("accuracy", MeanAbsoluteError(), "max"),  # and the table for more than that
    ],
)
def test_a_metric_that_the_table_does_not_have_says_its_own_direction(name, own, expected):
    assert direction(f"val/{name}", own) == expected


def test_minus_one_is_no_average_precision_and_nan_stays():
    assert [measured("map_small", -1), measured("loss", -1), measured("loss", None)] == [None, -1, None]
    assert str(measured("accuracy", float("nan"))) == "nan"
