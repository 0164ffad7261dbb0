"""Masks from the outlines of COCO's instances: polygons and run lengths, painted by size."""

from __future__ import annotations

import json

import numpy as np
import pytest
from picture_files import encoded, photograph

from convatlas.data.decoding import BadImageError
from convatlas.data.sources.coco_masks import _length, load, outline

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
LARGE = [[0, 0, 20, 0, 20, 20, 0, 20]]
SMALL = [[4, 4, 8, 4, 8, 8, 4, 8]]


def write(root, segmentations, split="train2017", **image):
    """Write one photograph of 32 x 24 pixels with objects `(category, segmentation)`."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / split / "a.jpg").write_bytes(encoded(photograph(len(split)), "JPEG"))
    entries = [
        {"id": number, "image_id": 1, "category_id": category, "segmentation": each, "bbox": [0, 0, 1, 1]}
        for number, (category, each) in enumerate(segmentations)
    ]
    images = [{"id": 1, "file_name": "a.jpg", "width": 32, "height": 24} | image]
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": entries, "categories": CATEGORIES}))


def test_small_objects_lie_over_large_ones_whatever_their_order(tmp_path):
    write(tmp_path, [(3, SMALL), (7, LARGE)])
    raw = load(tmp_path, test=None, image_size=32)
    assert raw.classes == ["background", "cat", "dog"]
    (mask,) = raw.masks
    inside = mask[4:28]  # four black rows above and below
    assert inside[5, 5] == 1
    assert inside[10, 10] == 2
    assert inside[22, 30] == 0
    assert (np.bincount(inside.ravel()) == [32 * 24 - 400, 16, 384]).all()


def test_both_splits_and_some_categories(tmp_path):
    write(tmp_path, [(3, LARGE)])
    write(tmp_path, [(7, LARGE)], "val2017")
    raw = load(tmp_path, classes=["dog"], image_size=32)
    assert raw.official_split.tolist() == ["train", "test"]
    assert raw.classes == ["background", "dog"]
    assert raw.masks.reshape(2, -1).max(axis=1).tolist() == [0, 1]


def test_run_lengths_are_those_of_the_library_that_reads_them():
    from faster_coco_eval.core import mask as coco

    rng = np.random.default_rng(0)
    for _ in range(20):
        area = np.asfortranarray(rng.random((17, 23)) < rng.random())
        area[3, 4] = True
        packed = coco.encode(area.astype(np.uint8))
        counts = packed["counts"] if isinstance(packed["counts"], str) else packed["counts"].decode()
        assert _length(counts) == area.size
        assert np.array_equal(outline({"size": [17, 23], "counts": counts}, (17, 23)), area)
    plain = {"size": [2, 2], "counts": [1, 2, 1]}
    assert outline(plain, (2, 2)).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[0, 0, 5, 5]],
        [[0, 0, 5, 5, 1]],
        [[0, 0, 5, float("nan"), 1, 1]],
        [[0, 0, 1e9, 0, 5, 5]],
        {"size": [24, 31], "counts": [0, 24 * 32]},
        {"size": [24, 32], "counts": [0, 7]},
        {"size": [24, 32], "counts": [-5, 24 * 32 + 5]},
        {"size": [24, 32], "counts": "PPPPPPPPPPPPP"},
        {"size": [24, 32], "counts": "\u00e9"},
        {"size": [24, 32], "counts": [24 * 32]},
    ],
)
def test_an_outline_that_is_none_is_refused(segmentation):
    with pytest.raises(BadImageError, match=r"its (outline|run lengths)"):
        outline(segmentation, (24, 32))


def test_what_cannot_be_used_is_listed_with_its_image(tmp_path):
    write(tmp_path, [(3, LARGE), (7, [[0, 0, 1]])])
    raw = load(tmp_path, test=None)
    name, reason = raw.left_out[0]
    assert (name, len(raw)) == ("train2017/a.jpg, object 2 (dog)", 1)
    assert "three points" in reason
