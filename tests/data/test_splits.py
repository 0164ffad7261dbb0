from __future__ import annotations

import numpy as np
import pytest
from small_sets import raw_classification, raw_images, raw_segmentation

from convatlas.core.config import SplitConfig
from convatlas.core.errors import UserError
from convatlas.data.splits import split_items, units_of


def config(validation: float = 0.15, test: float = 0.2, seed: int = 0) -> SplitConfig:
    return SplitConfig(validation=validation, test=test, seed=seed)


def by_class(labels: np.ndarray, items: np.ndarray) -> list[int]:
    return np.bincount(labels[items], minlength=labels.max() + 1).tolist()


def test_every_item_lies_in_exactly_one_split() -> None:
    parts = split_items(raw_classification(101), config(), "pixels")
    assert sorted(np.concatenate(list(parts.values()))) == list(range(101))
    for items in parts.values():
        assert (np.diff(items) > 0).all()


def test_each_class_is_divided_by_its_own_rounded_fraction() -> None:
    labels = np.repeat(np.arange(3), [100, 50, 20])
    parts = split_items(raw_classification(170, labels=labels), config(validation=0.25, test=0.2), "pixels")
    # test 0.2 of 100, 50, 20; validation 0.25 of the 80, 40, 16 that are left
    assert by_class(labels, parts["test"]) == [20, 10, 4]
    assert by_class(labels, parts["validation"]) == [20, 10, 4]
    assert by_class(labels, parts["train"]) == [60, 30, 12]


def test_few_training_images_are_as_many_of_each_class_and_leave_the_other_splits_alone() -> None:
    labels = np.repeat(np.arange(3), [100, 50, 20])
    raw = raw_classification(170, labels=labels)
    whole = split_items(raw, config(), "pixels")
    few, other = (
        split_items(raw, config().model_copy(update={"train_per_class": 5, "seed": seed}), "pixels") for seed in (0, 1)
    )
    assert by_class(labels, few["train"]) == [5, 5, 5]
    assert set(few["train"]) < set(whole["train"])
    for split in ("validation", "test"):
        np.testing.assert_array_equal(few[split], whole[split])
    assert set(few["train"]) != set(other["train"])
    too_many = config().model_copy(update={"train_per_class": 15})
    with pytest.raises(UserError, match=r"data.split.train_per_class=15: pixels has 14 training images of"):
        split_items(raw, too_many, "pixels")


def test_the_seed_alone_decides() -> None:
    raw = raw_classification(90)
    one, same, other = (split_items(raw, config(seed=seed), "pixels") for seed in (3, 3, 4))
    for split in one:
        np.testing.assert_array_equal(one[split], same[split])
    assert set(one["test"]) != set(other["test"])


def test_groups_stay_whole_and_classes_balanced() -> None:
    groups = np.repeat(np.arange(20, dtype=np.int64), 5)  # twenty patients with five images of one class each
    labels = groups % 2
    raw = raw_classification(100, 2, labels=labels, groups=groups)
    parts = split_items(raw, config(validation=0.25, test=0.2), "pixels")
    members = {split: set(groups[items]) for split, items in parts.items()}
    assert {split: len(found) for split, found in members.items()} == {"train": 12, "validation": 4, "test": 4}
    assert len(set.union(*members.values())) == 20
    assert by_class(labels, parts["test"]) == [10, 10]
    assert by_class(labels, parts["validation"]) == [10, 10]


def test_groups_of_masks_stay_whole() -> None:
    raw = raw_segmentation(40)
    raw.groups = np.arange(40, dtype=np.int64) // 4
    parts = split_items(raw, config(), "pixels")
    assert sum(len(set(raw.groups[items])) for items in parts.values()) == 10


def test_equal_images_end_in_one_split_for_every_seed() -> None:
    images = raw_images(60)
    images[40:] = images[:20]
    raw = raw_classification(60, images=images)
    for seed in range(10):
        parts = split_items(raw, config(seed=seed), "pixels")
        for items in parts.values():
            assert {i + 40 for i in items if i < 20} == {i for i in items if i >= 40}


def test_groups_and_copies_link_to_one_unit() -> None:
    images = raw_images(6)
    images[2] = images[5]
    raw = raw_classification(6, images=images, groups=np.array([7, 7, 9, 9, 1, 2], dtype=np.int64))
    units = units_of(raw)
    assert units[0] == units[1]
    assert units[2] == units[3] == units[5]  # 2 and 3 by group, 2 and 5 by their pixels
    assert len(set(units.tolist())) == 3


def test_the_official_test_split_is_kept() -> None:
    official = np.array(["train"] * 70 + ["test"] * 30)
    parts = split_items(raw_classification(100, official_split=official), config(test=0), "pixels")
    np.testing.assert_array_equal(parts["test"], np.arange(70, 100))
    assert by_class(np.arange(100) % 3, parts["validation"]) == [4, 3, 3]  # 0.15 of 24, 23 and 23 images, rounded
    assert max(parts["validation"]) < 70


@pytest.mark.parametrize(
    ("settings", "official", "message"),
    [
        (config(test=0.2), True, "data.split.test=0.2: pixels has an official test split"),
        (config(test=0), False, "data.split.test=0: pixels has no official test split"),
        (config(validation=0), False, "data.split.validation=0: pixels"),
        (config(validation=0.01), False, "pixels: the validation split would be empty"),
    ],
)
def test_fractions_that_do_not_fit_are_refused(settings: SplitConfig, official: bool, message: str) -> None:
    split = np.array(["train", "test"] * 15) if official else None
    with pytest.raises(UserError, match=message):
        split_items(raw_classification(30, official_split=split), settings, "pixels")


def test_a_group_across_the_official_split_is_refused() -> None:
    raw = raw_classification(
        4, 2, groups=np.array([1, 2, 2, 3], dtype=np.int64), official_split=np.array(["train", "train", "test", "test"])
    )
    with pytest.raises(UserError, match="pixels: images 1 and 2 belong to one group"):
        split_items(raw, config(test=0), "pixels")
