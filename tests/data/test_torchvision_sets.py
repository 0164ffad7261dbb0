"""Sets of torchvision: one that it makes itself, and one in its makers' layout."""

from __future__ import annotations

import inspect
import sys

import numpy as np
import pytest
import scipy.io
from picture_files import encoded, photograph

from convatlas.core.errors import UserError
from convatlas.data.card import Card
from convatlas.data.sources import torchvision_sets
from convatlas.data.sources.torchvision_sets import TRAINING_SPLITS, load
from helpers import assert_one_sentence, prepare_data

FAKE = {"size": 12, "image_size": [3, 20, 24], "num_classes": 3}


def write_flowers(root, monkeypatch):
    """Write eight photographs in the layout of Flowers-102: train 3, val 2, test 3."""
    from torchvision import datasets

    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 9):
        (folder / "jpg" / f"image_{number:05d}.jpg").write_bytes(encoded(photograph(number), "JPEG"))
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": [1, 2, 1, 2, 1, 2, 1, 2]})
    scipy.io.savemat(folder / "setid.mat", {"trnid": [1, 2, 3], "valid": [4, 5], "tstid": [6, 7, 8]})
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda _: True)  # its checksums are of the whole set
    monkeypatch.setattr(datasets.Flowers102, "download", lambda _: None)


def test_a_set_without_splits_is_read_whole():
    raw = load(None, dataset="FakeData", options=FAKE)
    assert len(raw) == 12
    assert (raw.classes, raw.official_split, raw.made) == (["0", "1", "2"], None, True)
    from torchvision.datasets import FakeData

    picture, label = FakeData(size=12, image_size=(3, 20, 24), num_classes=3)[7]
    from convatlas.data.decoding import decode

    assert np.array_equal(decode(raw.images.read(7), 3).pixels, np.asarray(picture).transpose(2, 0, 1))
    assert raw.labels[7] == label
    assert raw.take(np.array([5, 7])).images.read(1) == raw.images.read(7)


def test_validation_joins_the_training_and_the_test_stays(tmp_path, monkeypatch):
    write_flowers(tmp_path, monkeypatch)
    raw = load(tmp_path, dataset="Flowers102")
    assert raw.official_split.tolist() == ["train"] * 5 + ["test"] * 3
    assert raw.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert len(raw.classes) == 102
    assert raw.classes[0] == "pink primrose"


def test_every_set_that_is_listed_has_its_splits():
    from torchvision import datasets

    for name, splits in TRAINING_SPLITS.items():
        assert [each["split"] for each in torchvision_sets._splits(name, {}, {})] == [*splits, "test"]
        said = inspect.getsource(sys.modules[getattr(datasets, name).__module__])
        assert all(f'"{split}"' in said for split in (*splits, "test")), name


def test_a_set_is_prepared_with_card_and_splits(tmp_path):
    options = ["data.source.options={size:60,image_size:[3,20,24],num_classes:3}", "data.num_classes=3"]
    card = Card.read(prepare_data("torchvision", tmp_path, [*options, "data.image_size=16"]))
    assert sum(count.images for count in card.counts.values()) == 60
    assert (card.title, card.image_shape, card.fitted) == ("FakeData of torchvision", (3, 16, 16), "centre")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset": "Flower102"}, r"torchvision has no such set\. Did you mean Flowers102"),
        ({"dataset": "VOCDetection", "download": False}, r"is not in .* and cannot be had|no class for each image"),
        ({"dataset": "Flowers102", "download": False}, r"Flowers102 of torchvision is not in .*set data\.root"),
        ({"dataset": "FakeData", "options": {"sise": 3}}, r"data\.source\.options: .*sise"),
        ({"dataset": "FakeData", "options": {"size": 0}}, r"holds no image"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, **options)


def test_a_server_that_cannot_be_reached_is_one_sentence(tmp_path, monkeypatch, enter):
    def unreachable(*_, **__):
        raise OSError("the network is down")

    monkeypatch.setattr("torchvision.datasets.flowers102.download_and_extract_archive", unreachable)
    where = [
        f"data.root={tmp_path / 'raw'}",
        f"data.prepared={tmp_path / 'prepared'}",
        f"page={tmp_path / 'page.html'}",
    ]
    entered = enter("prepare", "data=torchvision", "data.source.dataset=Flowers102", *where)
    assert_one_sentence(entered, "the network is down", "set data.root")
    assert not (tmp_path / "prepared").exists()
