"""What lies in a raw folder is used or listed, and is never taken for something else without a word."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import photograph
from PIL import Image
from raw_files import save, write_mnist
from small_sets import raw_detection, raw_segmentation

from convatlas.core.config import SplitConfig
from convatlas.core.errors import UserError
from convatlas.data import archives
from convatlas.data.image_files import split_of_folder
from convatlas.data.sources import image_folder, image_mask_folder, pascal_voc
from convatlas.data.splits import has_objects, split_items

PIXELS = np.random.default_rng(0).integers(0, 256, (400, 6, 6, 3), dtype=np.uint8)
MORE = [("cat", 2), ("dog", 2)]


def write(root: Path, folders: str) -> Path:
    """Write folders given as "name name*3 other/name", two images in each, or as many as the number says."""
    number = 0
    for each in folders.split():
        name, _, count = each.partition("*")
        for item in range(int(count or 2)):
            save(root / name / f"{item}.png", PIXELS[number])
            number += 1
    return root


# ---- which folder is what -------------------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[str, list[str], dict[str, int]]] = {
    "classes": ("cat dog", ["cat", "dog"], {"": 4}),
    "Training and Testing": ("Training/cat Training/dog Testing/cat", ["cat", "dog"], {"train": 4, "test": 2}),
    "TRAIN and TEST": ("TRAIN/cat TRAIN/dog TEST/cat TEST/dog", ["cat", "dog"], {"train": 4, "test": 4}),
    "train_set and test_set": ("train_set/cat train_set/dog test_set/dog", ["cat", "dog"], {"train": 4, "test": 2}),
    "seg_train, twice": (
        "seg_train/seg_train/cat seg_train/seg_train/dog seg_test/seg_test/cat",
        ["cat", "dog"],
        {"train": 4, "test": 2},
    ),
    "Train and Validation": ("Train/cat Train/dog Validation/cat", ["cat", "dog"], {"train": 4, "test": 2}),
    "all three": ("train/cat train/dog val/cat test/dog", ["cat", "dog"], {"train": 6, "test": 2}),
    "a class train": ("plane train", ["plane", "train"], {"": 4}),
    "a class train with folders": ("plane train/steam train/diesel car", ["car", "plane", "train"], {"": 8}),
    "a class test": ("test exam", ["exam", "test"], {"": 4}),
    "train below train": ("train/plane train/train train/car", ["car", "plane", "train"], {"": 6}),
    "a class named as its folder": ("train/train train/car test/car", ["car", "train"], {"train": 4, "test": 2}),
    "persons below classes": ("cat/tom dog/rex dog", ["cat", "dog"], {"": 6}),
    "one folder below each": ("cat/images dog/images", ["cat", "dog"], {"": 4}),
    "what a network drive keeps": ("cat dog @eaDir/cat #recycle lost+found", ["cat", "dog"], {"": 4}),
    "unpacked twice": ("raw/cat raw/dog", ["cat", "dog"], {"": 4}),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_folders_are_what_they_are_named_for(tmp_path: Path, kind: str) -> None:
    folders, classes, splits = LAYOUTS[kind]
    raw = image_folder.load(write(tmp_path / "raw", folders))
    assert raw.classes == classes
    found = ["" for _ in raw.names or ()] if raw.official_split is None else raw.official_split.tolist()
    assert {split: found.count(split) for split in set(found)} == splits
    assert raw.left_out == []
    for name, label in zip(raw.names or (), raw.labels if raw.labels is not None else (), strict=True):
        assert f"{raw.classes[label]}/" in f"{name}/"


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (
            "A/cat A/dog B/cat B/dog",
            r"the folder A holds no picture but folders \(cat, dog\).* set data\.source\.train=A",
        ),
        ("train/cat train/dog training/cat", "holds train and training, both named for the train split"),
        ("train/cat train/dog val/images/x", "images is of a class without training pictures"),
        ("set/train/cat set/train/dog set/test/cat", r"If test, train in set are meant, set data\.root=\S*raw/set\."),
        ("train/images/cat train/images/dog test/cat", r"cat, dog in train/images are meant, set data\.source\.train="),
        ("train/cat train/dog test", "taken for the test, holds no folders of classes, such as cat/"),
    ],
)
def test_folders_that_may_be_two_things_are_refused(tmp_path: Path, folders: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        image_folder.load(write(tmp_path / "raw", folders))


def test_the_user_may_say_what_the_classes_are(tmp_path: Path) -> None:
    write(tmp_path, "A/cat A/dog B/cat B/dog")
    assert image_folder.load(tmp_path, train=".").classes == ["A", "B"]
    raw = image_folder.load(tmp_path, train="A", test="B")
    assert (raw.classes, raw.official_split.tolist()) == (["cat", "dog"], ["train"] * 4 + ["test"] * 4)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "train") for name in ("train", "Training", "TRAIN_SET", "train2017", "images_train")],
        *[(name, "test") for name in ("test", "Testing", "Test Set", "test-images")],
        *[(name, "validation") for name in ("val", "valid", "Validation", "dev")],
        *[(name, None) for name in ("trains", "contest", "trainer", "latest", "value", "device")],
    ],
)
def test_folders_of_splits_are_known_by_their_names(name: str, split: str | None) -> None:
    assert split_of_folder(name) == split


def test_what_lies_elsewhere_is_listed(tmp_path: Path) -> None:
    write(tmp_path, "train/cat train/dog test/cat sketches")
    save(tmp_path / "train" / "loose.png", PIXELS[0])
    (tmp_path / "train" / "cat" / "notes.txt").write_text("tom")
    raw = image_folder.load(tmp_path)
    assert sorted(raw.left_out) == [
        ("sketches/", "the folder is of no split"),
        ("train/cat/notes.txt", "its name does not end as that of a picture"),
        ("train/loose.png", "it lies beside the class folders"),
    ]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "raw", "cat dog")
    write(tmp_path / "disk", "tom*3 felix")
    (tmp_path / "raw" / "cat" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "raw" / "bird").symlink_to(tmp_path / "disk" / "tom")
    raw = image_folder.load(tmp_path / "raw")
    assert np.bincount(raw.labels).tolist() == [3, 7, 2]


# ---- images and masks -----------------------------------------------------------------------------------------------


def write_masks(root: Path) -> Path:
    for item in range(4):
        mask = np.zeros((20, 20), np.uint8)
        mask[2:8, 3:9] = 1
        image = np.full((20, 20), 40, np.uint8)
        image[2:8, 3:9] = 230 - item
        save(root / "images" / f"p{item}.png", image)
        save(root / "masks" / f"p{item}.png", mask)
    return root


MASKS: dict[str, tuple[Any, tuple[str, str]]] = {
    "two masks": (
        lambda root: save(root / "masks" / "p1.tif", np.ones((20, 20), np.uint8)),
        ("p1.png", "there are 2 masks of its name, p1.png and p1.tif"),
    ),
    "two images": (
        lambda root: save(root / "images" / "p1.jpg", np.ones((20, 20), np.uint8)),
        ("p1.jpg", "there are 2 images of its name, p1.jpg and p1.png"),
    ),
    "a mask alone": (
        lambda root: save(root / "masks" / "q.gif", np.ones((20, 20), np.uint8)),
        ("masks/q", "there is a mask, but no image"),
    ),
    "an image alone, in a folder": (
        lambda root: save(root / "images" / "more" / "q.webp", np.ones((20, 20), np.uint8)),
        ("more/q.webp", "it has no mask"),
    ),
    "a text": (
        lambda root: (root / "images" / "notes.txt").write_text("notes"),
        ("images/notes.txt", "its name does not end as that of an image"),
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_images_and_masks_that_do_not_pair_are_listed(tmp_path: Path, kind: str) -> None:
    change, listed = MASKS[kind]
    change(write_masks(tmp_path))
    raw = image_mask_folder.load(tmp_path, image_size=20)
    assert raw.left_out == [listed]
    assert len(raw) == (3 if listed[0].startswith("p1") else 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_lies_on_its_image_however_the_camera_was_held(tmp_path: Path, orientation: int) -> None:
    write_masks(tmp_path)
    upright = Image.open(tmp_path / "images" / "p0.png").copy()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transpositions that EXIF's orientations undo
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "images" / "p0.png", exif=exif)
    raw = image_mask_folder.load(tmp_path, image_size=20)
    assert (raw.images[0, 0][raw.masks[0] == 1] == 230).all()
    assert (raw.images[0, 0][raw.masks[0] == 0] == 40).all()
    assert raw.converted == ({} if orientation == 1 else {"turned as its EXIF data say": 1})


def test_grey_levels_of_masks_are_asked_for(tmp_path: Path) -> None:
    for path in (write_masks(tmp_path) / "masks").iterdir():
        save(path, np.asarray(Image.open(path)) * np.uint8(255))
    with pytest.raises(UserError, match=r"the unknown label 255.*; data\.source\.mask_values, for example \[0, 255\]"):
        image_mask_folder.load(tmp_path)


# ---- Pascal VOC -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["", "  1", " -1"])
def test_names_in_lists_may_hold_blanks(tmp_path: Path, second: str) -> None:
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    names = [f"IMG 00{item} (1)" for item in range(6)]
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for item, name in enumerate(names):
        save(tmp_path / "JPEGImages" / f"{name}.png", PIXELS[item])
        (tmp_path / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><object><name>cat</name>{box}</object></annotation>"
        )
    for split, part in (("trainval", names[:4]), ("test", names[4:])):
        (tmp_path / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}{second}\n" for name in part))
    raw = pascal_voc.load(tmp_path, classes=["cat"], image_size=16)
    assert raw.names == names
    assert raw.official_split.tolist() == ["train"] * 4 + ["test"] * 2
    assert (raw.title, raw.licence) == ("Images with boxes in the layout of Pascal VOC", "not stated")


# ---- splits ---------------------------------------------------------------------------------------------------------


def few_boxes(marked: int) -> Any:
    raw = raw_detection(60)
    for item in range(60):
        raw.boxes[item] = np.zeros((0, 4), np.float32) if item >= marked else np.float32([[1, 1, 4, 4]])
        raw.box_labels[item] = np.ones(len(raw.boxes[item]), np.int64)
    return raw


def few_masks(marked: int) -> Any:
    raw = raw_segmentation(60)
    raw.masks[marked:] = 0
    return raw


@pytest.mark.parametrize("make", [few_boxes, few_masks])
def test_every_split_has_something_to_find(make: Any) -> None:
    config = SplitConfig(validation=0.15, test=0.2, seed=0)
    for seed in range(20):
        raw = make(6)
        parts = split_items(raw, config.model_copy(update={"seed": seed}), "few")
        assert all(has_objects(raw)[items].any() for items in parts.values())
        assert sum(map(len, parts.values())) == 60
    with pytest.raises(UserError, match=r"nothing is marked in any of the \d+ images of the .* split"):
        split_items(make(1), config, "few")


# ---- size -----------------------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(80 << 20), 1))
    asked = []
    read = gzip.GzipFile.read

    def watched(self: gzip.GzipFile, size: int = -1) -> bytes:
        asked.append(size)
        return read(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", watched)
    with pytest.raises(UserError, match=r"bomb\.gz is refused: it unpacks to more than 67,108,864 bytes"):
        archives.read_file(bomb)
    assert max(asked) <= archives.FREE + 1
    assert archives.read_file(tmp_path / "train-labels-idx1-ubyte.gz")[:4] == bytes([0, 0, 8, 1])


PREPARES = """
import resource, sys
from pathlib import Path
from convatlas.core.config import DataConfig
from convatlas.data.prepare_dataset import prepare
import scipy.spatial, torch
root = Path(sys.argv[1])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
source = {"_target_": "convatlas.data.sources.pascal_voc.load", "classes": ["cat"], "image_size": 512}
prepare(DataConfig(name="large", task="detection", source=source, root=root / "raw", prepared=root / "prepared",
    image_size=512, in_channels=3, num_classes=2, split={"validation": 0.2, "test": 0.2, "seed": 0}))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak differs")
def test_preparing_takes_memory_for_a_few_images_and_not_for_all(tmp_path: Path) -> None:
    """500 images of 512 x 512 pixels are 393 MB."""
    (tmp_path / "raw" / "Annotations").mkdir(parents=True)
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    for item in range(500):
        save(tmp_path / "raw" / "JPEGImages" / f"{item}.png", photograph(item, 16, 16))
        text = f"<annotation><object><name>cat</name>{box}</object></annotation>"
        (tmp_path / "raw" / "Annotations" / f"{item}.xml").write_text(text)
    answer = subprocess.run(
        [sys.executable, "-c", PREPARES, str(tmp_path)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert sum(path.stat().st_size for path in (tmp_path / "prepared").glob("*_images.npy")) > 390e6
    assert float(answer.stdout) < 250
