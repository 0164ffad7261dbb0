"""IDX files in every form in which a person may have them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from raw_files import pixels, tree, write_mnist

from convatlas.core.errors import UserError
from convatlas.data.sources.mnist import load_fashion_mnist, load_mnist


def dotted(root: Path) -> None:
    write_mnist(root, gzipped=False)
    for path in list(root.iterdir()):
        path.rename(root / path.name.replace("-idx", ".idx"))


def half_unpacked(root: Path) -> None:
    write_mnist(root)
    path = root / "train-images-idx3-ubyte.gz"
    (root / "train-images-idx3-ubyte").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()


@pytest.mark.parametrize(
    "write",
    [
        write_mnist,
        lambda root: write_mnist(root, gzipped=False),
        lambda root: write_mnist(root / "raw"),
        lambda root: write_mnist(root / "MNIST" / "raw", gzipped=False),
        dotted,
        half_unpacked,
    ],
    ids=["gzipped", "plain", "raw", "torchvision", "dotted", "mixed"],
)
def test_every_form_gives_the_same_data(tmp_path: Path, write: Callable[[Path], object]) -> None:
    write(tmp_path)
    before = tree(tmp_path)
    raw = load_mnist(tmp_path, download=False, verify=False)
    np.testing.assert_array_equal(raw.images[:40, 0], pixels(40, 28, 28, seed=0))
    np.testing.assert_array_equal(raw.images[40:, 0], pixels(20, 28, 28, seed=1))
    assert raw.labels.tolist() == [*range(10)] * 6
    assert raw.official_split.tolist() == ["train"] * 40 + ["test"] * 20
    assert (raw.names[39], raw.names[40]) == ("train/39", "test/0")
    assert tree(tmp_path) == before


def test_fashion_has_names_for_its_classes(tmp_path: Path) -> None:
    raw = load_fashion_mnist(write_mnist(tmp_path / "FashionMNIST" / "raw").parents[1], download=False, verify=False)
    assert (raw.classes[0], raw.classes[9], raw.licence) == ("T-shirt/top", "Ankle boot", "MIT")


@pytest.mark.parametrize("gzipped", [True, False])
def test_a_file_of_the_official_name_must_be_the_official_file(tmp_path: Path, gzipped: bool) -> None:
    write_mnist(tmp_path, gzipped=gzipped)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte(\.gz)? is not the official file: its md5 is .* set "
                       r"data\.source\.verify=false"):  # fmt: skip
        load_mnist(tmp_path, download=False)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        UserError, match=r"MNIST: t10k-labels-idx1-ubyte\.gz not found in .*data\.source\.download=true"
    ):
        load_mnist(tmp_path, download=False, verify=False)
    with pytest.raises(UserError, match=r"data\.root=.*gz is a file; set data\.root="):
        load_mnist(tmp_path / "train-images-idx3-ubyte.gz", download=False)
