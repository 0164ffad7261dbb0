from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from convatlas.core.errors import UserError
from convatlas.data.sources import digits


def test_all_of_the_digits_with_exact_scaling() -> None:
    raw = digits.load(Path("nowhere"))
    assert raw.images.shape == (1797, 1, 8, 8)
    assert raw.images.dtype == np.uint8
    assert raw.task == "classification"
    # 255/16 a step: 0, 15.9, 31.9, ... to the nearest, and 127.5 upwards.
    scale = np.array([0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255])
    np.testing.assert_array_equal(raw.images[:, 0], scale[load_digits().images.astype(int)])
    np.testing.assert_array_equal(raw.labels, load_digits().target)


def test_the_pixels_are_the_ones_the_results_belong_to() -> None:
    raw = digits.load(Path("nowhere"))
    assert np.bincount(raw.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    digest = hashlib.sha256(raw.images.tobytes()).hexdigest()
    assert digest == "b41ca9fd335466eee997366c2e6f6bbe0a1b4582afe091fc4eba35f4a254182f"


def test_some_of_the_digits_are_numbered_anew() -> None:
    everything, some = digits.load(Path()), digits.load(Path(), digits=[5, 6, 9])
    used = np.isin(everything.labels, [5, 6, 9])
    assert some.classes == ["5", "6", "9"]
    np.testing.assert_array_equal(some.images, everything.images[used])
    np.testing.assert_array_equal(np.array([5, 6, 9])[some.labels], everything.labels[used])


@pytest.mark.parametrize("chosen", [[1], [2, 1], [1, 1, 2], [9, 10]])
def test_digits_that_are_none_are_refused(chosen: list[int]) -> None:
    with pytest.raises(UserError, match=r"^data\.source\.digits="):
        digits.load(Path(), digits=chosen)
