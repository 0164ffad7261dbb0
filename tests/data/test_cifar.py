"""CIFAR's batches: pickles as Python 2 wrote them, and binary ones, in folders and archives; and the real ones."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from raw_files import (
    CIFAR10_NAMES,
    cifar10_batches,
    cifar100_batches,
    tar_of_folder,
    tree,
    write_cifar10,
    write_cifar10_binary,
    write_cifar100,
    write_cifar100_binary,
)

from convatlas.core.errors import UserError
from convatlas.data.prepared import PreparedData
from convatlas.data.sources.cifar import load_cifar10, load_cifar100
from helpers import ROOT, prepare_data

REAL = ROOT.parent / "shared" / "data" / "unpack"


def archived(root: Path, name: str, folder: Path) -> None:
    tar_of_folder(root / name, folder)


FORMS: dict[str, Callable[[Path, Path], object]] = {
    "folder": lambda root, _: write_cifar10(root / "cifar-10-batches-py"),
    "root itself": lambda root, _: write_cifar10(root),
    "archive": lambda root, other: archived(
        root, "cifar-10-python.tar.gz", write_cifar10(other / "cifar-10-batches-py")
    ),
    "binary folder": lambda root, _: write_cifar10_binary(root / "cifar-10-batches-bin"),
    "binary archive": lambda root, other: archived(
        root, "cifar-10-binary.tar.gz", write_cifar10_binary(other / "cifar-10-batches-bin")
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_data(tmp_path: Path, form: str) -> None:
    root = tmp_path / "raw"
    FORMS[form](root, tmp_path / "elsewhere")
    before = tree(root)
    raw = load_cifar10(root, download=False, verify=False)
    expected = np.concatenate([batch[b"data"] for batch in cifar10_batches().values()])
    np.testing.assert_array_equal(raw.images, expected.reshape(60, 3, 32, 32))
    assert raw.labels.tolist() == [*range(10)] * 6
    assert raw.official_split.tolist() == ["train"] * 50 + ["test"] * 10
    assert raw.classes == [name.decode() for name in CIFAR10_NAMES]
    assert raw.names[50] == ("test_batch.bin/0" if "binary" in form else "test_batch/picture_s_000000.png")
    assert tree(root) == before


def test_some_classes_are_numbered_as_given(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py")
    whole = load_cifar10(tmp_path, download=False, verify=False)
    ship, cat = whole.classes.index("ship"), whole.classes.index("cat")
    raw = load_cifar10(tmp_path, classes=["ship", "cat"], download=False, verify=False)
    assert raw.classes == ["ship", "cat"]
    np.testing.assert_array_equal(raw.images, whole.images[np.isin(whole.labels, [ship, cat])])
    assert raw.labels.tolist() == [1, 0] * 6
    with pytest.raises(UserError, match=r"data.source.classes=\['ship', 'shark'\] must be two or more of airplane, "):
        load_cifar10(tmp_path, classes=["ship", "shark"], download=False, verify=False)


@pytest.mark.parametrize("write", [write_cifar100, write_cifar100_binary])
@pytest.mark.parametrize(("labels", "classes"), [("fine", 100), ("coarse", 20)])
def test_cifar100_has_two_kinds_of_labels(
    tmp_path: Path, write: Callable[[Path], object], labels: str, classes: int
) -> None:
    write(tmp_path / ("cifar-100-binary" if write is write_cifar100_binary else "cifar-100-python"))
    raw = load_cifar100(tmp_path, labels=labels, download=False, verify=False)  # type: ignore[arg-type]
    expected = cifar100_batches()["train"][f"{labels}_labels".encode()] * 2
    assert raw.labels.tolist() == expected
    assert len(raw.classes) == classes
    assert raw.official_split.tolist() == ["train"] * 100 + ["test"] * 100


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_batches_that_python_3_wrote_are_read_as_well(tmp_path: Path, protocol: int) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    batch = {key.decode(): value for key, value in cifar10_batches()["data_batch_2"].items()}
    (folder / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=protocol))
    raw = load_cifar10(tmp_path, download=False, verify=False)
    np.testing.assert_array_equal(raw.images[10:20], batch["data"].reshape(10, 3, 32, 32))


def test_the_unpickler_hands_nothing_to_numpy_but_bytes(tmp_path: Path) -> None:
    """An array of objects would be rebuilt by numpy from whatever the pickle says; here it is refused."""
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    batch = cifar10_batches()["data_batch_1"] | {b"data": np.array([[None] * 3072] * 10, dtype=object)}
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(UserError, match=r"data_batch_1 is damaged: its images and labels do not fit together"):
        load_cifar10(tmp_path, download=False, verify=False)


def test_official_names_stand_for_official_files(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py")
    with pytest.raises(UserError, match=r"data_batch_1 is not the official file: its md5 is \w+, not c99cafc1"):
        load_cifar10(tmp_path, download=False)
    with pytest.raises(UserError, match=r"CIFAR-100: cifar-100-python\.tar\.gz not found in"):
        load_cifar100(tmp_path, download=False)
    with pytest.raises(UserError, match=r"data\.source\.labels=both must be fine"):
        load_cifar100(tmp_path, labels="both")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="the real files are not beside the checkout")
def test_the_real_files_are_read_and_prepared(tmp_path: Path) -> None:
    subprocess.run(
        [str(REAL), str(tmp_path), "cifar10"],
        check=True,
        env={"PATH": str(Path(sys.executable).parent) + ":/bin:/usr/bin"},
    )
    root = tmp_path / "cifar10"
    before = tree(root)
    raw = load_cifar10(root, download=False)
    assert raw.images.shape == (60_000, 3, 32, 32)
    assert np.bincount(raw.labels[:50_000]).tolist() == [5000] * 10
    assert np.bincount(raw.labels[50_000:]).tolist() == [1000] * 10
    prepared = PreparedData.open(prepare_data("cifar10", tmp_path / "prepared", [f"data.root={root}"]))
    card = prepared.card
    assert sum(counts.images for counts in card.counts.values()) + len(card.rejected) == 60_000
    assert card.counts["test"].images == 10_000
    # The known statistics of the 50,000 training images.
    np.testing.assert_allclose(card.mean, (0.4914, 0.4822, 0.4465), atol=2e-3)
    np.testing.assert_allclose(card.std, (0.2470, 0.2435, 0.2616), atol=2e-3)
    assert tree(root) == before
