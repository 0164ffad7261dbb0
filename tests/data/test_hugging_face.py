"""Sets that Hugging Face's library reads: local Parquet files and folders, and a hub that is not there."""

from __future__ import annotations

import numpy as np
import pytest
from picture_files import encoded, photograph
from raw_files import write_class_folders

from convatlas.core.errors import UserError
from convatlas.data.card import Card
from convatlas.data.decoding import decode
from convatlas.data.sources.hugging_face import load
from helpers import assert_one_sentence, prepare_data

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()


def table(count: int, first: int = 0, named: bool = True):
    """Make a table of pictures with their labels, `cat` and `dog` in turn."""
    pictures = [{"bytes": encoded(photograph(first + number), "JPEG"), "path": None} for number in range(count)]
    label = datasets.ClassLabel(names=["cat", "dog"]) if named else datasets.Value("string")
    values = [number % 2 if named else ["cat", "dog"][number % 2] for number in range(count)]
    features = datasets.Features({"picture": datasets.Image(), "kind": label, "id": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"picture": pictures, "kind": values, "id": [*range(count)]}, features=features)


@pytest.fixture
def folder(tmp_path):
    """Write Parquet files of 20 and 6 images."""
    path = tmp_path / "pets" / "data"
    path.mkdir(parents=True)
    table(20).to_parquet(path / "train-00000-of-00001.parquet")
    table(6, 100).to_parquet(path / "test-00000-of-00001.parquet")
    return tmp_path / "pets"


def test_columns_are_found_by_their_types(folder, tmp_path):
    raw = load(tmp_path / "cache", path=str(folder))
    assert raw.classes == ["cat", "dog"]
    assert raw.labels.tolist() == [0, 1] * 13
    assert raw.official_split.tolist() == ["train"] * 20 + ["test"] * 6
    assert np.array_equal(decode(raw.images.read(22), 3).pixels, decode(encoded(photograph(102), "JPEG"), 3).pixels)
    assert raw.images.read(22) == encoded(photograph(102), "JPEG"), "the file's own bytes"


def test_texts_are_classes_where_their_column_is_named(tmp_path):
    table(8, named=False).to_parquet(tmp_path / "pets.parquet")
    raw = load(tmp_path / "cache", path=str(tmp_path / "pets.parquet"), label_column="kind")
    assert (raw.classes, raw.labels.tolist(), raw.official_split) == (["cat", "dog"], [0, 1] * 4, None)


def test_a_folder_of_pictures_is_read_too(tmp_path):
    write_class_folders(tmp_path / "pets" / "train", {"cat": 3, "dog": 4})
    write_class_folders(tmp_path / "pets" / "validation", {"cat": 2, "dog": 2}, 1)
    raw = load(tmp_path / "cache", path=str(tmp_path / "pets"))
    assert (raw.classes, np.bincount(raw.labels).tolist()) == (["cat", "dog"], [5, 6])
    assert raw.official_split.tolist().count("test") == 4


def test_a_set_is_prepared_with_card_and_splits(folder, tmp_path):
    options = [
        f"data.source.path={folder}",
        f"data.root={tmp_path / 'cache'}",
        "data.num_classes=2",
        "data.split.test=0",
    ]
    card = Card.read(prepare_data("hugging_face", tmp_path / "prepared", options))
    assert card.counts["test"].images == 6
    assert sum(count.images for count in card.counts.values()) == 26
    assert card.counts["test"].classes == {"cat": 3, "dog": 3}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_column": "pictur"}, r"image_column=pictur: .* it has picture, kind, id"),
        ({"label_column": "picture"}, r"no class for each image"),
        ({"path": "nowhere.parquet/"}, r"path=nowhere\.parquet/ cannot be read or reached .*another machine"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(folder, tmp_path, monkeypatch, change, sentence):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path / "cache", **({"path": str(folder)} | change))


def test_two_columns_of_images_are_asked_about(tmp_path):
    both = table(4).map(lambda row: {"mask": row["picture"]}, features=None)
    both = both.cast_column("mask", datasets.Image())
    both.to_parquet(tmp_path / "both.parquet")
    with pytest.raises(UserError, match=r"2 columns may be meant \(picture, mask\); set data\.source\.image_column"):
        load(tmp_path / "cache", path=str(tmp_path / "both.parquet"))


def test_a_set_without_images_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.source\.path=.*empty"):
        load(tmp_path / "cache", path=str(tmp_path / "empty"))


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path, monkeypatch, enter):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'someone/pets' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    where = [
        f"data.root={tmp_path / 'raw'}",
        f"data.prepared={tmp_path / 'prepared'}",
        f"page={tmp_path / 'page.html'}",
    ]
    entered = enter("prepare", "data=hugging_face", "data.source.path=someone/pets", *where)
    assert_one_sentence(entered, "someone/pets", "on the Hub", "get its files on another machine")
    assert not (tmp_path / "prepared").exists()
