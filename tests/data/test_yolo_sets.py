"""The layout of YOLO, as Ultralytics and Roboflow write it."""

from __future__ import annotations

import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from picture_files import encoded, photograph
from raw_files import tree

from convatlas.core.errors import UserError
from convatlas.data.sources.pascal_voc import load as load_voc
from convatlas.data.sources.yolo import load
from helpers import ROOT, assert_one_sentence

UNPACK = ROOT.parent / "shared" / "data" / "unpack"

BOX = "1 0.5 0.5 0.25 0.5"


def write(root, files: dict[str, str | None], **description):
    """Write photographs of 32 x 24 pixels with their label files, and data.yaml; None leaves the label file out."""
    for number, (name, labels) in enumerate(files.items()):
        image = root / f"{name}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(encoded(photograph(number), "JPEG"))
        if labels is not None:
            path = root / f"{name.replace('images', 'labels')}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(labels)
    given = {"train": "images/train", "names": ["cat", "dog"], "nc": 2} | description
    (root / "data.yaml").write_text(yaml.safe_dump({key: value for key, value in given.items() if value is not None}))


def test_boxes_and_outlines_become_pixels_of_the_square(tmp_path):
    write(
        tmp_path,
        {"images/train/a": f"{BOX}\n0 0.25 0.25 0.75 0.25 0.75 0.75\n", "images/train/b": "", "images/train/c": None},
    )
    before = tree(tmp_path)
    raw = load(tmp_path, image_size=32)
    assert raw.classes == ["background", "cat", "dog"]
    assert raw.names == [f"images/train/{name}.jpg" for name in "abc"]
    assert raw.box_labels[0].tolist() == [2, 1]
    # 32 x 24 pixels in a square of 32: four black rows above
    np.testing.assert_allclose(raw.boxes[0], [[12, 10, 20, 22], [8, 10, 24, 22]], atol=1e-3)
    assert [len(boxes) for boxes in raw.boxes] == [2, 0, 0], "a picture without objects is background"
    assert raw.left_out == []
    assert tree(tmp_path) == before


def test_the_paths_of_roboflow_lead_out_of_the_folder_and_are_meant_inside(tmp_path):
    files = {f"{split}/images/{split}": BOX for split in ("train", "valid", "test")}
    write(tmp_path, files, train="../train/images", val="../valid/images", test="../test/images",
          roboflow={"license": "CC BY 4.0", "url": "the-page"}, names={0: "cat", 1: "dog"})  # fmt: skip
    raw = load(tmp_path)
    assert raw.official_split.tolist() == ["train", "train", "test"], "valid joins train where there is a test"
    assert (raw.licence, raw.origin) == ("CC BY 4.0", "the-page")


def test_a_list_of_images_and_a_base_path(tmp_path):
    write(tmp_path / "set", {"images/a": BOX, "images/b": BOX}, train="train.txt", val="val.txt", path="../set")
    (tmp_path / "set" / "train.txt").write_text("./images/a.jpg\n")
    (tmp_path / "set" / "val.txt").write_text("./images/b.jpg\n./images/gone.jpg\n")
    raw = load(tmp_path / "set")
    assert raw.official_split.tolist() == ["train", "test"]
    assert raw.left_out == [("images/gone.jpg", "it is listed, but there is no file")]


def test_what_is_wrong_with_one_picture_is_listed_and_the_others_stay(tmp_path):
    labels = {
        "good": BOX,
        "number": f"{BOX}\n7 0.5 0.5 0.1 0.1",
        "outside": f"{BOX}\n0 1.4 0.5 0.2 0.2",
        "figures": f"{BOX}\n0 0.5 0.5 0.1",
        "words": f"{BOX}\ncat 0.5 0.5 0.1 0.1",
        "nothing": "7 0.5 0.5 0.1 0.1",
    }
    write(tmp_path, {f"images/train/{name}": text for name, text in labels.items()})
    (tmp_path / "labels" / "train" / "orphan.txt").write_text(BOX)
    raw = load(tmp_path)
    assert sorted(raw.names) == sorted(f"images/train/{name}.jpg" for name in labels if name != "nothing")
    reasons = dict(raw.left_out)
    assert reasons["labels/train/orphan.txt"] == "there are labels, but no image"
    beyond = reasons["images/train/number.jpg, object 2 (class 7)"]
    assert beyond == "its class number 7 is beyond the names of data.yaml, 0 to 1"
    assert "lies outside the image" in reasons["images/train/outside.jpg, object 2 (cat)"]
    assert "three figures" in reasons["images/train/figures.jpg, object 2 (cat)"].replace("3 figures", "three figures")
    assert "is not of numbers" in reasons["images/train/words.jpg, object 2 (cat)"]
    assert "none of its 1 object can be used" in reasons["images/train/nothing.jpg"]


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"names": None}, r"data\.yaml has no `names`"),
        ({"nc": 3}, r"data\.yaml: nc is 3, but there are 2 names"),
        ({"train": "images/nowhere"}, r"data\.yaml: train is images/nowhere, and there is no such folder"),
        ({"train": None, "val": "images/train"}, r"names no `train`"),
        ({"train": "labels"}, r"there is no image in train"),
    ],
)
def test_a_wrong_description_is_one_sentence(tmp_path, description, sentence):
    write(tmp_path, {"images/train/a": BOX}, **description)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not UNPACK.is_file(), reason="the real files are not in ../shared/data")
def test_bccd_is_the_same_in_both_layouts(tmp_path):
    """The XML files, read here once more and written as YOLO has it, give the same images and boxes."""
    subprocess.run([UNPACK, tmp_path, "bccd"], check=True, capture_output=True)
    folder, classes = tmp_path / "bccd" / "BCCD", ["RBC", "WBC", "Platelets"]
    (tmp_path / "bccd" / "labels").mkdir()
    (tmp_path / "bccd" / "images").symlink_to(folder / "JPEGImages")
    counted = dict.fromkeys(classes, 0)
    for listed in ("trainval", "test"):
        names = (folder / "ImageSets/Main" / f"{listed}.txt").read_text().split()
        (tmp_path / "bccd" / f"{listed}.txt").write_text("".join(f"images/{name}.jpg\n" for name in names))
        for name in names:
            lines = []
            for each in ElementTree.parse(folder / "Annotations" / f"{name}.xml").iter("object"):
                x1, y1, x2, y2 = (int(each.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
                x1, y1, wide, high = x1 - 1, y1 - 1, (x2 - x1 + 1) * (x1 < x2), y2 - y1 + 1
                shares = (x1 + wide / 2) / 640, (y1 + high / 2) / 480, wide / 640, high / 480
                lines.append(f"{classes.index(each.findtext('name'))} " + " ".join(f"{share:.6f}" for share in shares))
                counted[each.findtext("name")] += wide > 0
            (tmp_path / "bccd" / "labels" / f"{name}.txt").write_text("\n".join(lines))
    described = {"train": "trainval.txt", "val": "test.txt", "names": classes}
    (tmp_path / "bccd" / "data.yaml").write_text(yaml.safe_dump(described))
    yolo = load(tmp_path / "bccd", image_size=32)
    voc = load_voc(tmp_path / "bccd", classes=classes, image_size=32)
    order = [voc.names.index(name.rpartition("/")[2].removesuffix(".jpg")) for name in yolo.names]
    assert sorted(order) == list(range(364))
    assert yolo.images.tobytes() == voc.images[order].tobytes()
    for item, number in enumerate(order):
        np.testing.assert_allclose(yolo.boxes[item], voc.boxes[number], atol=1e-3)
        assert yolo.box_labels[item].tolist() == voc.box_labels[number].tolist()
        assert yolo.official_split[item] == voc.official_split[number]
    found = np.bincount(np.concatenate(yolo.box_labels), minlength=4)[1:].tolist()
    assert dict(zip(classes, found, strict=True)) == counted


def test_a_set_without_usable_images_is_one_sentence(tmp_path, enter):
    write(tmp_path / "raw", {"images/train/a": "7 0.5 0.5 0.1 0.1"})
    where = [f"data.root={tmp_path / 'raw'}", f"data.prepared={tmp_path / 'out'}", f"page={tmp_path / 'page.html'}"]
    assert_one_sentence(enter("prepare", "data=yolo", *where), "no image is usable; images/train/a.jpg")
    assert not (tmp_path / "out").exists()
