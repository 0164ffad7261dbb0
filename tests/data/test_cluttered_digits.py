"""Cluttered digits: the same bytes for the same seed, digits that no two splits share, the sizes that are promised."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from convatlas.core.config import SplitConfig
from convatlas.core.errors import UserError
from convatlas.data.sources import cluttered_digits
from convatlas.data.sources.cluttered_digits import POOLS, load, read_digits
from convatlas.data.splits import split_items
from helpers import ROOT

NOWHERE = Path("nowhere")
DIGESTS = {
    "easy": "c6a5e4b02f072546",
    "medium": "5f5c1256a79133d1",
    "hard": "4535c9db4e248868",
}
"""Of two images of each pool, by level."""


@pytest.fixture(scope="module", autouse=True)
def _read_once() -> Any:
    found = read_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluttered_digits, "read_digits", lambda: found)
        yield


@pytest.mark.parametrize(("level", "digest"), DIGESTS.items())
def test_the_same_arguments_make_the_same_bytes(level: str, digest: str) -> None:
    made = load(NOWHERE, images_per_pool=2, level=level)
    assert hashlib.sha256(made.pixels.tobytes()).hexdigest()[:16] == digest
    assert not np.array_equal(made.pixels, load(NOWHERE, images_per_pool=2, level=level, seed=1).pixels)


def test_more_images_leave_the_first_as_they_are() -> None:
    few, many = load(NOWHERE, images_per_pool=2), load(NOWHERE, images_per_pool=3)
    assert np.array_equal(few.pixels.reshape(POOLS, 2, -1), many.pixels.reshape(POOLS, 3, -1)[:, :2])


def test_some_digits_alone_leave_their_images_as_they_are() -> None:
    every, some = load(NOWHERE, images_per_pool=6), load(NOWHERE, images_per_pool=6, digits=[3, 7])
    assert every.labels is not None
    assert some.labels is not None
    assert some.classes == ["3", "7"]
    assert np.array_equal(some.pixels, every.pixels[np.isin(every.labels, [3, 7])])
    assert np.array_equal(some.labels, every.labels[np.isin(every.labels, [3, 7])] == 7)


def test_no_digit_is_in_images_of_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the digit that counts and the fragments: each of the 5,000 digits is drawn in images of one pool alone."""
    digits, labels = read_digits()
    marked = digits.copy()
    marked[:, 0, 0] = np.arange(len(digits)) / len(digits)  # the corner of every digit is blank
    monkeypatch.setattr(cluttered_digits, "read_digits", lambda: (marked, labels))
    drawn: list[tuple[int, set[int]]] = []

    def spy(digit: Any, others: Any, side: int, *_: Any) -> Any:
        drawn.append((number(digit), {number(each) for each in others}))
        return np.zeros((side, side), np.uint8)

    def number(digit: Any) -> int:
        return round(float(digit[0, 0]) * len(digits))

    monkeypatch.setattr(cluttered_digits, "draw", spy)
    made = load(NOWHERE, images_per_pool=2)
    assert made.groups is not None
    assert made.labels is not None
    pools: dict[int, set[int]] = {}
    for (digit, others), pool, label in zip(drawn, made.groups, made.labels, strict=True):
        assert digit in others
        assert labels[digit] == label
        pools.setdefault(int(pool), set()).update(others)
    assert sum(map(len, pools.values())) == len(set.union(*pools.values())) == 5000
    assert {len(pool) for pool in pools.values()} <= {294, 295}


def test_splits_have_the_sizes_that_the_card_promises() -> None:
    made = load(NOWHERE, images_per_pool=6)
    split = SplitConfig.model_validate(yaml.safe_load((ROOT / "conf/data/cluttered_digits.yaml").read_text())["split"])
    parts = split_items(made, split, "cluttered_digits")
    assert {name: len(items) for name, items in parts.items()} == {"train": 60, "validation": 12, "test": 30}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images_per_pool": 0}, r"use 1 to 100,000 images_per_pool \(0\)"),
        ({"seed": -1}, r"a seed from 0 \(-1\)"),
        ({"level": "mean"}, "level=mean is not known; use one of easy, medium, hard"),
        ({"image_size": 16}, "image_size=16 leaves no digit"),
        ({"digits": [5, 3]}, r"digits=\[5, 3\] must be two or more of 0 to 9"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(NOWHERE, **options)
