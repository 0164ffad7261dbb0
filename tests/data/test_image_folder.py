"""Pictures in class folders, in the forms in which people have them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose
from omegaconf import OmegaConf
from raw_files import pixels, save, tree, write_class_folders, write_simpsons

from convatlas.core.composing import hydra_ready
from convatlas.core.config import DataConfig
from convatlas.core.errors import UserError
from convatlas.data.image_files import ImageFiles
from convatlas.data.sources.image_folder import load

COUNTS = {"cat": 3, "dog": 4}


def test_folders_are_classes_and_pictures_stay_in_their_files(tmp_path: Path) -> None:
    write_class_folders(tmp_path, COUNTS)
    nested = save(tmp_path / "dog" / "more" / "deep.JPG", pixels(9, 9, 3))
    before = tree(tmp_path)
    raw = load(tmp_path)
    assert isinstance(raw.images, ImageFiles)
    assert raw.classes == ["cat", "dog"]
    assert raw.labels.tolist() == [0] * 3 + [1] * 5
    assert raw.names[:4] == ["cat/pic_0000.png", "cat/pic_0001.png", "cat/pic_0002.png", "dog/more/deep.JPG"]
    assert raw.images.read(3) == nested.read_bytes()
    assert raw.official_split is None
    assert raw.left_out == []
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("folders", "split", "note"),
    [
        (["train", "test"], [7, 7], "The folder test is the test split."),
        (["train", "val"], [7, 7], "The folder val is the test split."),
        (["train", "valid", "test"], [14, 7], "The folder valid is joined with train"),
    ],
)
def test_folders_for_the_splits(tmp_path: Path, folders: list[str], split: list[int], note: str) -> None:
    for seed, name in enumerate(folders):
        write_class_folders(tmp_path / name, COUNTS, seed)
    raw = load(tmp_path)
    assert raw.official_split.tolist() == ["train"] * split[0] + ["test"] * split[1]
    assert raw.labels.tolist() == [0, 0, 0, 1, 1, 1, 1] * len(folders)
    assert any(remark.startswith(note) for remark in raw.notes)


def test_train_may_be_a_class_among_others(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"plane": 2, "train": 3})
    raw = load(tmp_path)
    assert (raw.classes, raw.labels.tolist()) == (["plane", "train"], [0, 0, 1, 1, 1])


def test_only_a_class_that_is_trained_can_be_tested(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", COUNTS)
    write_class_folders(tmp_path / "test", {"cats": 2})
    with pytest.raises(UserError, match=r"test/cats is of a class without training pictures\. Did you mean cat\?"):
        load(tmp_path)


def test_what_belongs_together_is_found_in_the_paths(tmp_path: Path) -> None:
    for name in ("cat/s01_a.png", "cat/s01_b.png", "dog/s02_a.png", "dog/s01_c.png", "dog/other.png"):
        save(tmp_path / name, pixels(8, 8, 3, seed=len(name)))
    raw = load(tmp_path, group_pattern=r"/(s\d+)_")
    assert raw.groups.tolist() == [0, 0, 0, 1]
    assert raw.names == ["cat/s01_a.png", "cat/s01_b.png", "dog/s01_c.png", "dog/s02_a.png"]
    assert raw.left_out == [("dog/other.png", r"its path does not fit data.source.group_pattern=/(s\d+)_")]


def test_other_files_are_counted_and_clutter_is_not(tmp_path: Path) -> None:
    write_class_folders(tmp_path, COUNTS)
    (tmp_path / "cat" / "notes.txt").write_text("three cats")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "dog" / name).write_bytes(b"clutter")
    write_class_folders(tmp_path / "__MACOSX", COUNTS)
    write_class_folders(tmp_path / ".ipynb_checkpoints", COUNTS)
    raw = load(tmp_path)
    assert len(raw) == 7
    assert raw.left_out == [("cat/notes.txt", "its name does not end as that of a picture")]


@pytest.mark.parametrize("name", ["caf\u00e9", "кот", "a b", os.fsdecode(b"caf\xe9"), "two\nlines"])
def test_names_of_any_kind_can_be_written_into_a_card(tmp_path: Path, name: str) -> None:
    write_class_folders(tmp_path, {name: 2, "zebra": 2})
    save(tmp_path / "zebra" / f"{name}.png", pixels(5, 5, 3))
    raw = load(tmp_path)
    assert len(raw) == 5
    escaped = {"two\nlines": r"two\nlines", os.fsdecode(b"caf\xe9"): r"caf\xe9"}.get(name, name)
    assert sorted(raw.classes) == sorted([escaped, "zebra"])
    assert f"zebra/{escaped}.png" in raw.names
    assert all(text.isprintable() for text in [*raw.classes, *raw.names])  # no surrogate, so that UTF-8 can hold it
    assert raw.images.read(0)


# ---- The Simpsons' characters ---------------------------------------------------------------------------------------


def simpsons(root: Path, *overrides: str) -> Any:
    with hydra_ready():
        composed = compose("prepare", ["data=simpsons", f"data.root={root}", *overrides])
    config = DataConfig.model_validate(OmegaConf.to_container(composed.data, resolve=True))
    options = {key: value for key, value in config.source.items() if key != "_target_"}
    return load(config.root, **options)


def test_characters_stand_in_the_names_of_the_test_pictures(tmp_path: Path) -> None:
    write_simpsons(tmp_path)
    folder = tmp_path / "kaggle_simpson_testset" / "kaggle_simpson_testset"
    for name in ("lisa_simpson_0.jpg", "img0.jpg"):
        save(folder / name, pixels(9, 9, 3))
    raw = simpsons(tmp_path)
    assert raw.classes == ["bart_simpson", "homer_simpson", "sideshow_bob"]
    assert raw.official_split.tolist() == ["train"] * 36 + ["test"] * 9
    assert np.bincount(raw.labels[36:]).tolist() == [3, 3, 3]
    assert [name.rpartition("/")[2] for name, _ in raw.left_out] == ["img0.jpg", "lisa_simpson_0.jpg"]
    assert raw.left_out[1][1] == "its name says the class lisa_simpson, which has no training folder"


def test_the_copy_that_unpacking_leaves_is_not_a_class(tmp_path: Path) -> None:
    write_simpsons(tmp_path)
    (tmp_path / "simpsons_dataset").rename(tmp_path / "inner")
    (tmp_path / "simpsons_dataset").mkdir()
    (tmp_path / "inner").rename(tmp_path / "simpsons_dataset" / "simpsons_dataset")
    assert simpsons(tmp_path).classes == ["bart_simpson", "homer_simpson", "sideshow_bob"]


def test_the_contest_s_own_files_have_no_test_labels(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train" / "simpsons_dataset", {"bart_simpson": 4, "homer_simpson": 4})
    save(tmp_path / "testset" / "testset" / "img0.jpg", pixels(9, 9, 3))
    raw = simpsons(tmp_path, "data.source.train=train/simpsons_dataset", "data.source.test=null", "data.split.test=0.2")
    assert (len(raw), raw.official_split) == (8, None)


def test_how_to_get_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*simpsons_dataset\. Get it with a Kaggle account from "):
        simpsons(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test": "exam"}, r"there is no folder .*exam with the test pictures; put it there"),
        ({"test": "train", "test_pattern": "(["}, r"data\.source\.test_pattern=\(\[ is no regular expression"),
        ({"test": "train", "test_pattern": "x"}, r"data\.source\.test_pattern=x needs a group in brackets"),
        ({"test": "train", "test_pattern": "^(x)"}, r"train holds no picture that can be used for the test"),
        ({"group_pattern": "(episode)"}, r"group_pattern=\(episode\) fits no path, such as train/cat/pic_0000\.png"),
        ({"train": "none"}, r"there is no folder .*none\. Put a folder of pictures for each class there"),
    ],
)
def test_options_that_fit_nothing(tmp_path: Path, options: dict[str, str], words: str) -> None:
    write_class_folders(tmp_path / "train", COUNTS)
    with pytest.raises(UserError, match=words):
        load(tmp_path, **options)  # type: ignore[arg-type]
