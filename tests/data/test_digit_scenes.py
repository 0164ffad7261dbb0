"""Digit scenes: exact boxes, digits that no two splits share, the same bytes for the same seed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from convatlas.core.errors import UserError
from convatlas.data.sources.digit_scenes import LEVELS, deal_into_pools, draw_scene, enlarge, load, overlap

NOWHERE = Path("nowhere")
SIDE = 64


def test_a_box_is_the_extent_of_the_pixels_that_differ_from_the_background() -> None:
    scenes = load(NOWHERE, scenes=50, noise=0.0)
    assert scenes.boxes is not None
    for image, boxes in zip(scenes.images[:, 0], scenes.boxes, strict=True):
        ink = image != np.bincount(image.reshape(-1)).argmax()
        outside = ink.copy()
        for x1, y1, x2, y2 in boxes.astype(int):
            inside = ink[y1:y2, x1:x2]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            outside[y1:y2, x1:x2] = False
        assert not outside.any()


def test_boxes_lie_inside_the_scene_and_hardly_overlap() -> None:
    scenes = load(NOWHERE, scenes=50)
    assert scenes.boxes is not None
    for boxes in scenes.boxes:
        assert 1 <= len(boxes) <= 6
        assert boxes.min() >= 0
        assert boxes.max() <= 96
        pairs = [(a, b) for number, a in enumerate(boxes) for b in boxes[:number]]
        assert all(overlap(tuple(a), tuple(b)) <= 0.1 for a, b in pairs)


def test_a_scene_names_the_digits_that_were_pasted() -> None:
    """On a flat background the painted pixels of a digit that stands alone are the enlarged picture's own."""
    pictures = (load_digits().images / 16).astype(np.float32)
    drawn = (draw_scene(pictures, np.arange(17, 23), SIDE, 0.0, np.random.default_rng(seed)) for seed in range(100))
    scene = next(scene for scene in drawn if len(scene.digits) == 1)
    x1, y1, x2, y2 = scene.boxes[0].astype(int)
    painted = scene.image[y1:y2, x1:x2] != scene.image[0, 0]
    expected = [enlarge(pictures[scene.digits[0]], side) > 0 for side in range(8, SIDE)]
    assert any(each.shape == painted.shape and (each == painted).all() for each in expected)


def test_pools_are_disjoint_and_balanced_in_each_class() -> None:
    labels = load_digits().target.astype(np.int64)
    pools = deal_into_pools(labels, 25, seed=3)
    table = np.zeros((25, 10), dtype=int)
    np.add.at(table, (pools, labels), 1)  # each digit has one pool, so that pools cannot share any
    assert table.sum() == 1797
    assert (table.max(axis=0) - table.min(axis=0)).max() <= 1
    assert np.ptp(table.sum(axis=1)) <= 1


def test_a_scene_takes_its_digits_from_the_pool_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from convatlas.data.sources import digit_scenes

    used: list[tuple[set[int], np.ndarray]] = []

    def watched(pictures: np.ndarray, digits: np.ndarray, *rest: object) -> digit_scenes.Scene:
        scene = draw_scene(pictures, digits, *rest)  # type: ignore[arg-type]
        used.append((set(digits.tolist()), scene.digits))
        return scene

    monkeypatch.setattr(digit_scenes, "draw_scene", watched)
    scenes = digit_scenes.load(NOWHERE, scenes=75)
    assert scenes.groups is not None
    assert scenes.official_split is not None
    digits_of = {split: set() for split in ("train", "test")}
    pool_of = {}
    for group, split, (pool, pasted) in zip(scenes.groups, scenes.official_split, used, strict=True):
        assert pool_of.setdefault(int(group), pool) == pool
        assert set(pasted.tolist()) <= pool
        digits_of[str(split)] |= set(pasted.tolist())
    assert not digits_of["train"] & digits_of["test"]
    every_two = [(a, b) for a in pool_of for b in pool_of if a < b]
    assert not any(pool_of[a] & pool_of[b] for a, b in every_two)


def test_a_fifth_of_the_pools_is_the_test_split() -> None:
    scenes = load(NOWHERE, scenes=50)
    assert scenes.groups is not None
    assert scenes.official_split is not None
    assert set(scenes.groups[scenes.official_split == "test"].tolist()) == {20, 21, 22, 23, 24}
    assert (scenes.official_split == "test").sum() == 10


def test_labels_are_the_digits_own() -> None:
    labels = load_digits().target
    pictures = (load_digits().images / 16).astype(np.float32)
    scenes = load(NOWHERE, scenes=25)
    assert scenes.box_labels is not None
    pools = deal_into_pools(labels.astype(np.int64), 25, seed=0)
    for number in range(25):
        generator = np.random.default_rng([0, number])
        scene = draw_scene(pictures, np.flatnonzero(pools == number), 96, 10.0, generator)
        names = [scenes.classes[label] for label in scenes.box_labels[number]]
        assert names == [str(labels[digit]) for digit in scene.digits]


def test_the_same_seed_makes_the_same_bytes_and_more_scenes_keep_the_first() -> None:
    few, more, other = load(NOWHERE, scenes=25), load(NOWHERE, scenes=50), load(NOWHERE, scenes=25, seed=1)
    assert few.images.tobytes() == more.images[:25].tobytes()
    assert few.images.tobytes() != other.images.tobytes()


# ---- levels of difficulty -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"level": "medium", "noise": 10.0}])
def test_the_scenes_that_results_were_measured_on_stay_as_they_are(options: dict[str, Any]) -> None:
    scenes = load(NOWHERE, scenes=25, **options)
    whole = [part.astype("<i4").tobytes() for part in [*(scenes.boxes or []), *(scenes.box_labels or [])]]
    assert hashlib.sha256(b"".join(whole)).hexdigest()[:16] == "09f6af9e748058b4"
    assert scenes.images.mean() == pytest.approx(129.1056, abs=1e-3)
    assert scenes.images.std() == pytest.approx(41.2576, abs=1e-3)


def test_each_level_has_more_and_smaller_digits_than_the_one_before() -> None:
    made = [load(NOWHERE, scenes=50, level=level) for level in LEVELS]
    assert list(LEVELS) == ["easy", "medium", "hard"]
    counts = [np.mean([len(boxes) for boxes in scenes.boxes or []]) for scenes in made]
    sides = [
        np.sqrt(np.prod(np.diff(np.concatenate(s.boxes or []).reshape(-1, 2, 2), axis=1), -1)).mean() for s in made
    ]
    assert counts[0] < counts[1] < counts[2]
    assert sides[0] > sides[1] > sides[2]


@pytest.mark.parametrize(("level", "fewest", "most"), [("easy", 1, 3), ("hard", 1, 10)])
def test_a_level_keeps_its_bounds(level: str, fewest: int, most: int) -> None:
    scenes = load(NOWHERE, scenes=50, level=level)
    for boxes in scenes.boxes or []:
        assert fewest <= len(boxes) <= most
        pairs = [(a, b) for number, a in enumerate(boxes) for b in boxes[:number]]
        assert all(overlap(tuple(a), tuple(b)) <= LEVELS[level].overlap for a, b in pairs)


def test_clutter_is_in_no_digit_s_box_and_adds_no_object() -> None:
    """Without noise, what is drawn first is the same with and without clutter, and inside the boxes nothing changes."""
    pictures = (load_digits().images / 16).astype(np.float32)
    alone = replace(LEVELS["hard"], clutter=0)
    cluttered = 0
    for seed in range(20):
        plain, full = (
            draw_scene(pictures, np.arange(40), 96, 0.0, np.random.default_rng(seed), level=level)
            for level in (alone, LEVELS["hard"])
        )
        np.testing.assert_array_equal(plain.boxes, full.boxes)
        assert plain.digits.tolist() == full.digits.tolist()
        changed = plain.image != full.image
        cluttered += changed.any()
        for x1, y1, x2, y2 in plain.boxes.astype(int):
            assert not changed[y1:y2, x1:x2].any()
    assert cluttered > 10


def test_it_says_that_it_is_made() -> None:
    scenes = load(NOWHERE, scenes=25)
    assert scenes.made
    assert any("made" in note for note in scenes.notes)


@pytest.mark.parametrize(("options", "word"), [
    ({"scenes": 24}, "scenes=24"),
    ({"image_size": 32}, "image_size=32 .* with level=medium use 48 or more"),
    ({"image_size": 48, "level": "hard"}, "image_size=48 .* with level=hard use 64 or more"),
    ({"level": "harder"}, "data.source.level=harder is not known; use one of easy, medium, hard"),
])  # fmt: skip
def test_it_refuses_what_makes_no_scenes(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        load(NOWHERE, **options)


def test_a_large_test_split_leaves_the_scenes_of_training_their_pools() -> None:
    few, many = (load(NOWHERE, scenes=40 + test, test_scenes=test, image_size=SIDE) for test in (10, 30))
    assert few.official_split is not None
    assert few.official_split.tolist() == ["train"] * 40 + ["test"] * 10
    assert many.groups is not None
    assert many.groups.tolist() == [*range(20), *range(20), *[20, 21, 22, 23, 24] * 6]
    assert np.array_equal(few.images, many.images[:50])


@pytest.mark.parametrize("test_scenes", [4, 31])
def test_a_test_split_that_leaves_pools_empty_is_refused(test_scenes: int) -> None:
    with pytest.raises(
        UserError, match=rf"^data\.source\.test_scenes={test_scenes} .*; of 50 scenes use 5 to 30 for the"
    ):
        load(NOWHERE, scenes=50, test_scenes=test_scenes)
