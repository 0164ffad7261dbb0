"""The configurations of the published data sets, through the command that people type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from raw_files import write_mnist

from helpers import Entered, assert_one_sentence

Enter = Callable[..., Entered]

DOWNLOADED = {
    "mnist": "MNIST: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz",
    "fashion_mnist": "Fashion-MNIST: train-images-idx3-ubyte.gz",
    "cifar10": "CIFAR-10: cifar-10-python.tar.gz",
    "cifar100": "CIFAR-100: cifar-100-python.tar.gz",
    "svhn": "Street View House Numbers, cropped digits: train_32x32.mat, test_32x32.mat",
}
BY_HAND = {
    "imagenet": "register at image-net.org",
    "simpsons": "kaggle.com/datasets/alexattia/the-simpsons-characters-dataset",
    "image_folder": "Put a folder of pictures for each class there",
}


@pytest.mark.parametrize("name", DOWNLOADED)
def test_without_a_download_the_files_that_are_wanted_are_named(name: str, tmp_path: Path, enter: Enter) -> None:
    root = tmp_path / "raw"
    ended = enter("prepare", f"data={name}", f"data.root={root}", "data.source.download=false")
    assert_one_sentence(ended, DOWNLOADED[name], f"not found in {root}", "data.source.download=true")
    assert not root.exists()


@pytest.mark.parametrize("name", BY_HAND)
def test_what_no_program_may_download_is_explained(name: str, tmp_path: Path, enter: Enter) -> None:
    ended = enter("prepare", f"data={name}", f"data.root={tmp_path / 'raw'}")
    assert_one_sentence(ended, f"there is no folder {tmp_path / 'raw'}", BY_HAND[name])


def test_a_set_is_prepared_from_its_files(tmp_path: Path, enter: Enter) -> None:
    root = write_mnist(tmp_path / "raw", 200)
    ended = enter(
        "prepare",
        "data=mnist",
        f"data.root={root}",
        "data.source.verify=false",
        f"data.prepared={tmp_path / 'prepared'}",
        f"page={tmp_path / 'page.html'}",
    )
    assert (ended.status, ended.err) == (0, "")
    assert "train 180, validation 20, test 20; 0 rejected" in ended.out
