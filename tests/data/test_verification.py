from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_sets import raw_classification, raw_detection, raw_images, raw_segmentation

from convatlas.core.errors import UserError
from convatlas.data.verification import alike_names, count_classes, empty_classes, verify


def test_nothing_is_rejected_from_good_data() -> None:
    for raw in (raw_classification(), raw_detection(), raw_segmentation()):
        findings = verify(raw, "pixels")
        assert findings.kept.tolist() == list(range(len(raw)))
        assert findings.rejected == ()
        assert findings.duplicates == 0


def test_bad_items_of_classification_are_listed_with_their_reasons() -> None:
    raw = raw_classification(6)
    raw.labels[1], raw.labels[2] = -1, 3
    raw.images[4] = 17
    findings = verify(raw, "pixels")
    assert findings.kept.tolist() == [0, 3, 5]
    assert findings.rejected == (
        (1, "label -1 is outside 0..2"),
        (2, "label 3 is outside 0..2"),
        (4, "every pixel has the value 17"),
    )


@pytest.mark.parametrize(
    ("box", "label", "reason"),
    [
        ([0, 0, 8, 8], 1, None),
        ([1, 1, 1, 4], 1, "box [1.0, 1.0, 1.0, 4.0] has no area"),
        ([5, 1, 2, 4], 1, "box [5.0, 1.0, 2.0, 4.0] has no area"),
        ([0, np.nan, 2, 4], 1, "box [0.0, nan, 2.0, 4.0] has no area"),
        ([0, 0, 8.5, 4], 1, "box [0.0, 0.0, 8.5, 4.0] reaches out of the image of 8 x 8 pixels"),
        ([-1, 0, 3, 4], 1, "box [-1.0, 0.0, 3.0, 4.0] reaches out of the image of 8 x 8 pixels"),
        ([0, 0, 3, 4], 0, "box label 0 is outside 1..2"),
        ([0, 0, 3, 4], 3, "box label 3 is outside 1..2"),
    ],
)
def test_bad_boxes_reject_their_image(box: list[float], label: int, reason: str | None) -> None:
    raw = raw_detection(6)
    raw.boxes[4], raw.box_labels[4] = np.array([box], dtype=np.float32), np.array([label])
    assert verify(raw, "pixels").rejected == (() if reason is None else ((4, reason),))


def test_a_mask_outside_the_classes_rejects_its_image() -> None:
    raw = raw_segmentation(5)
    raw.masks[3, 0, 0] = 4
    assert verify(raw, "pixels").rejected == ((3, "mask value 4 is outside 0..3"),)


def test_copies_are_counted_and_contradictions_named() -> None:
    images = raw_images(8)
    images[3] = images[6] = images[0]
    images[5] = images[4]
    findings = verify(raw_classification(8, images=images, labels=np.array([0, 1, 2, 0, 1, 1, 2, 2])), "pixels")
    assert findings.duplicates == 3
    assert findings.conflicting == ((0, 6),)
    assert len(findings.kept) == 8


def test_copies_of_official_test_images_leave_the_training() -> None:
    images = raw_images(6)
    images[1] = images[5]
    raw = raw_classification(6, images=images, official_split=np.array(["train"] * 4 + ["test"] * 2))
    findings = verify(raw, "pixels")
    assert findings.rejected == ((1, "the same image is item 5, of the official test split"),)
    assert findings.duplicates == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": raw_images(60).astype(np.float32)}, "pixels: images are float32"),
        ({"images": raw_images(60)[:, 0]}, r"pixels: images are uint8 of shape \(60, 8, 8\)"),
        ({"labels": np.zeros(59, dtype=np.int64)}, r"labels are int64 of shape \(59,\), not int64 of shape \(60,\)"),
        ({"labels": np.zeros(60)}, "pixels: labels are float64"),
        ({"labels": None}, "pixels: the task is not clear"),
        ({"masks": np.zeros((60, 8, 8), dtype=np.uint8)}, "pixels: the task is not clear"),
        ({"classes": ["one", "one", "two"]}, "pixels: classes"),
        ({"groups": np.zeros(3, dtype=np.int64)}, "pixels: groups are int64"),
        ({"official_split": np.array(["train", "val"] * 30)}, "pixels: official_split has the values"),
        ({"labels": np.full(60, 9)}, "pixels: not one of 60 images is usable; image 0: label 9"),
    ],
)
def test_a_wrong_structure_stops_the_preparation(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        verify(replace(raw_classification(60), **change), "pixels")


def test_pixel_sizes_of_another_shape_stop_the_preparation() -> None:
    raw = replace(raw_segmentation(5), spacing=np.ones((5, 3), dtype=np.float32))
    with pytest.raises(
        UserError, match=r"pixels: spacing are float32 of shape \(5, 3\), not float32 of shape \(5, 2\)"
    ):
        verify(raw, "pixels")


def test_classes_are_counted_in_the_unit_of_the_task() -> None:
    assert count_classes(raw_classification(7)) == {"class 0": 3, "class 1": 2, "class 2": 2}
    detection = raw_detection(30)
    counts = count_classes(detection)
    assert list(counts) == ["class 1", "class 2"]  # the background has no boxes
    assert sum(counts.values()) == sum(map(len, detection.boxes)) == 30
    assert sum(count_classes(raw_segmentation(30)).values()) == 30 * 64


def test_empty_classes_are_named_and_refused_in_training() -> None:
    raw = raw_classification(6)  # labels 0 1 2 0 1 2
    parts = {"train": np.arange(3), "validation": np.array([3]), "test": np.array([4, 5])}
    assert empty_classes(raw, parts, "pixels") == {"validation": ["class 1", "class 2"], "test": ["class 0"]}
    with pytest.raises(UserError, match="pixels: no training image has the class class 2"):
        empty_classes(raw, {"train": np.arange(2)}, "pixels")


@pytest.mark.parametrize(
    ("classes", "alike"),
    [
        (["Cat", "cat", "dog"], "'Cat'/'cat'"),
        (["a b", "a  b ", "A b"], "'a b'/'a  b '/'A b'"),
        (["\u00e9", "e\u0301", "x", "X"], "'\u00e9'/'e\u0301', 'x'/'X'"),
        (["1", "10", "cat", "cats"], ""),
    ],
)
def test_class_names_that_are_nearly_equal_are_named(classes: list[str], alike: str) -> None:
    said = f"These class names differ only in case, blanks or accents, and stay separate classes: {alike}."
    assert alike_names(classes) == (said if alike else "")
