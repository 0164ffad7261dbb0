"""SVHN's MATLAB files, written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from raw_files import pixels, tree, write_svhn

from convatlas.core.errors import UserError
from convatlas.data.sources.svhn import load


def test_digits_are_read_and_label_ten_is_zero(tmp_path: Path) -> None:
    before = tree(write_svhn(tmp_path))
    raw = load(tmp_path, download=False, verify=False)
    assert raw.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    stored = pixels(32, 32, 3, 20, seed=0)  # rows, columns, colours, images
    np.testing.assert_array_equal(raw.images[7].transpose(1, 2, 0), stored[..., 7])
    assert raw.official_split.tolist() == ["train"] * 20 + ["test"] * 20
    assert tree(tmp_path) == before


def test_the_extra_images_are_for_training(tmp_path: Path) -> None:
    write_svhn(tmp_path, ["train", "test", "extra"])
    raw = load(tmp_path, extra=True, download=False, verify=False)
    assert raw.official_split.tolist() == ["train"] * 40 + ["test"] * 20
    assert raw.names[20] == "extra/0"


def test_another_file_of_the_official_name_is_refused(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    with pytest.raises(UserError, match=r"train_32x32\.mat is not the official file: its md5 is \w+, not e26dedcc"):
        load(tmp_path, download=False)
