"""1,797 handwritten digits of 8 x 8 pixels that ship inside scikit-learn.

The test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998): each pixel counts the ink in a block of 4 x 4 pixels of a 32 x 32 scan, so its values are 0 to 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convatlas.core.errors import UserError
from convatlas.data.raw import RawDataset

__all__ = ["check_digits", "load"]

INK_LEVELS = 16


def load(root: Path, digits: Sequence[int] = tuple(range(10))) -> RawDataset:  # noqa: ARG001 - needs no files
    """Read the digits.

    The counts 0 to 16 become 0 to 255, rounded to the nearest whole number, halves upwards: `(255 v + 8) // 16`.

    Args:
        root: not used; the images lie inside scikit-learn.
        digits: rising; the others are left out, and these are the classes 0, 1, ... in this order.

    Returns:
        images `(1797, 1, 8, 8)` and labels `(1797,)`, in scikit-learn's order, or as many as there are of `digits`.

    Raises:
        UserError: `digits` is not a rising list of two digits or more.
    """
    check_digits(digits)
    from sklearn.datasets import load_digits

    found = load_digits()
    used = np.isin(found.target, list(digits))
    ink = found.images[used].astype(np.int64)
    images = (ink * 255 + INK_LEVELS // 2) // INK_LEVELS
    return RawDataset(
        images=images.astype(np.uint8)[:, None],
        classes=[str(digit) for digit in digits],
        title="Optical Recognition of Handwritten Digits, the test part, 8 x 8 pixels",
        origin="E. Alpaydin and C. Kaynak, UCI Machine Learning Repository (1998); doi:10.24432/C50P49",
        licence="CC BY 4.0",
        made=False,
        labels=np.searchsorted(list(digits), found.target[used]).astype(np.int64),
        notes=[
            "Pixels count ink from 0 to 16; they are stored as (255 v + 8) // 16.",
            "Read from scikit-learn, which ships these images.",
            "Thirteen people wrote them. Who wrote which is not recorded, so their digits lie in all three splits.",
            "Accuracy on the digits of a new writer can be lower.",
        ],
    )


def check_digits(digits: Sequence[int]) -> None:
    """Raise UserError unless the digits are a rising list of two or more."""
    if len(digits) < 2 or list(digits) != sorted(set(digits) & set(range(10))):
        raise UserError(f"data.source.digits={list(digits)} must be two or more of 0 to 9, rising and each once.")
