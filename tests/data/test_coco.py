"""The layout of COCO: files written here, one flaw each; and the real BCCD brought into it, where it is at hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convatlas.core.errors import UserError
from convatlas.data.raw import RawDataset
from convatlas.data.sources.coco import load
from convatlas.data.sources.pascal_voc import load as load_voc
from convatlas.data.verification import verify
from helpers import ROOT

UNPACK = ROOT.parent / "shared" / "data" / "unpack"
WIDTH, HEIGHT = 40, 30
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "toothbrush"}]
Content = dict[str, list[Any]]


def save_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def annotation(number: int, image: int, category: int, box: Any, **other: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0} | other


def write_split(root: Path, split: str, names: str) -> None:
    """Write images, each with a cat and a toothbrush; their ids are 10, 20, ..."""
    images, annotations = [], []
    for number, name in enumerate(names, start=1):
        save_picture(root / split / f"{name}.png", ord(name))
        images.append({"id": 10 * number, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT})
        annotations.append(annotation(2 * number, 10 * number, 3, [0, 0, 20, 10]))
        annotations.append(annotation(2 * number + 1, 10 * number, 90, [10.5, 6, 29.5, 24]))
    write_content(root, {"images": images, "annotations": annotations, "categories": CATEGORIES}, split)


def write_content(root: Path, content: Any, split: str = "train2017") -> None:
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_split(tmp_path / "raw", "train2017", "abc")
    write_split(tmp_path / "raw", "val2017", "vw")
    return tmp_path / "raw"


def edit(root: Path, change: Callable[[Content], object]) -> None:
    content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    change(content)
    write_content(root, content)


def load_small(root: Path, **other: Any) -> RawDataset:
    return load(root, **({"image_size": 20, "fit": "stretch"} | other))


# ---- what is right --------------------------------------------------------------------------------------------------


def test_category_ids_with_gaps_become_classes_in_their_order(root: Path) -> None:
    raw = load_small(root)
    assert raw.classes == ["background", "cat", "dog", "toothbrush"]
    assert [labels.tolist() for labels in raw.box_labels] == [[1, 3]] * 5
    assert (raw.left_out, verify(raw, "coco").rejected) == ([], ())


def test_boxes_are_a_corner_and_a_size(root: Path) -> None:
    raw = load_small(root)
    np.testing.assert_allclose(raw.boxes[0], [[0, 0, 10, 20 / 3], [5.25, 4, 20, 20]], rtol=1e-6)


def test_the_validation_file_is_the_test_split(root: Path) -> None:
    raw = load_small(root)
    assert raw.names == ["train2017/a.png", "train2017/b.png", "train2017/c.png", "val2017/v.png", "val2017/w.png"]
    assert raw.official_split.tolist() == ["train"] * 3 + ["test"] * 2
    assert load_small(root, test=None).official_split is None


def test_classes_may_be_chosen_and_ordered(root: Path) -> None:
    raw = load_small(root, classes=["toothbrush", "dog"])
    assert raw.classes == ["background", "toothbrush", "dog"]
    assert raw.box_labels[0].tolist() == [1]
    assert "Left out of 10 marked objects: 5 of another class." in raw.notes


@pytest.mark.parametrize("folder", ["images/train2017", "images"])
def test_images_are_found_in_other_folders(root: Path, folder: str) -> None:
    (root / "train2017").rename(root / "elsewhere")
    (root / "images").mkdir()
    if folder == "images":
        (root / "images").rmdir()
    (root / "elsewhere").rename(root / folder)
    assert len(load_small(root)) == 5


def test_an_image_without_annotation_is_background_and_a_file_without_entry_is_left_out(root: Path) -> None:
    edit(root, lambda content: content.update(annotations=content["annotations"][2:]))
    save_picture(root / "train2017" / "z.png", 99)
    raw = load_small(root)
    assert len(raw.boxes[0]) == 0
    assert raw.left_out == [("train2017/z.png", "it has no annotation: no file lists it")]


# ---- what is wrong with an annotation -------------------------------------------------------------------------------

RLE = {"counts": [0, 30, 1170], "size": [HEIGHT, WIDTH]}


@pytest.mark.parametrize(("bad", "name", "reason", "count"), [
    (annotation(9, 20, 3, [5, 5, 0, 5]), "cat", "its box has no area", "1 without area"),
    (annotation(9, 20, 3, [5, 5, 5, -5]), "cat", "its box has no area", "1 without area"),
    (annotation(9, 20, 3, [60, 5, 5, 5]), "cat", "its box 60, 5, 65, 10 lies outside", "1 outside their image"),
    (annotation(9, 20, 3, [5, 5, 5]), "cat", "its box is not four numbers", "1 without a box"),
    (annotation(9, 20, 3, None), "cat", "its box is not four numbers", "1 without a box"),
    (annotation(9, 20, 3, [5, 5, float("nan"), 5]), "cat", "its box is not four numbers", "1 without a box"),
    (annotation(9, 20, 3, [5, 5, 10**400, 5]), "cat", "its box is not four numbers", "1 without a box"),
    (annotation(9, 20, 8, [5, 5, 5, 5]), "category 8", "its class is none of cat, dog", "1 of another class"),
    (annotation(9, 20, [3], [5, 5, 5, 5]), "category [3]", "its class is none of", "1 of another class"),
    (annotation(9, 20, 3, [0, 0, 9, 9], iscrowd=1, segmentation=RLE), "cat", "it is a crowd region", "1 crowds"),
])  # fmt: skip
def test_a_bad_annotation_is_named_and_counted_and_the_others_stay(
    root: Path, bad: dict[str, Any], name: str, reason: str, count: str
) -> None:
    edit(root, lambda content: content["annotations"].append(bad))
    raw = load_small(root)
    [(found, why)] = raw.left_out
    assert found == f"train2017/b.png, object 3 ({name})"
    assert reason in why
    assert f"Left out of 11 marked objects: {count}." in raw.notes
    assert raw.box_labels[1].tolist() == [1, 3]
    assert any("Crowd regions are neither" in note for note in raw.notes) == ("crowd" in reason)
    assert verify(raw, "coco").rejected == ()


@pytest.mark.parametrize("image", [55, None, [20], True])
def test_an_annotation_of_no_image_is_named(root: Path, image: Any) -> None:
    edit(root, lambda content: content["annotations"].append(annotation(9, image, 3, [0, 0, 5, 5])))
    raw = load_small(root)
    assert raw.left_out == [("train2017, annotation 9", f"its image_id is {image!r}, which no usable image has")]
    assert len(raw) == 5


def test_annotations_with_one_id_are_both_used_and_counted(root: Path) -> None:
    edit(root, lambda content: content["annotations"].append(annotation(2, 20, 7, [0, 0, 9, 9])))
    raw = load_small(root)
    assert raw.box_labels[1].tolist() == [1, 3, 2]
    assert "instances_train2017.json: 1 annotation with the id of another; nothing depends on it." in raw.notes


# ---- what is wrong with an image ------------------------------------------------------------------------------------


def entry(**values: Any) -> Callable[[Path], None]:
    """Change the entry of b.png."""
    return lambda root: edit(root, lambda content: content["images"][1].update(values))


def cut_short(root: Path) -> None:
    path = root / "train2017" / "b.png"
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(("damage", "name", "reason"), [
    (lambda root: (root / "train2017/b.png").unlink(), "train2017/b.png", "there is an annotation, but no image"),
    (cut_short, "train2017/b.png", "it cannot be decoded: image file is truncated"),
    (entry(width=41), "train2017/b.png", "its annotation is for 41 x 30 pixels, but it has 40 x 30"),
    (entry(file_name="../val2017/v.png"), "train2017/../val2017/v.png", "its file_name leads out of the folder"),
    (entry(file_name="/etc/passwd"), "train2017//etc/passwd", "its file_name leads out of the folder"),
    (entry(file_name="a.png"), "train2017/a.png, image 20", "it is the file of image 10 too"),
    (entry(id=None), "train2017, image at position 1", "it has no number `id` or no `file_name`"),
    (entry(file_name=["b.png"]), "train2017, image at position 1", "it has no number `id` or no `file_name`"),
])  # fmt: skip
def test_a_bad_image_is_named_and_the_others_are_used(
    root: Path, damage: Callable[[Path], object], name: str, reason: str
) -> None:
    damage(root)
    raw = load_small(root)
    assert raw.names == ["train2017/a.png", "train2017/c.png", "val2017/v.png", "val2017/w.png"]
    assert any(found == name and reason in why for found, why in raw.left_out), raw.left_out


def test_images_with_one_id_are_all_left_out(root: Path) -> None:
    entry(id=10)(root)
    raw = load_small(root)
    assert raw.names[0] == "train2017/c.png"
    why = "its id 10 is that of 2 images: whose the boxes are is open"
    assert raw.left_out[:2] == [("train2017/a.png", why), ("train2017/b.png", why)]


# ---- what is wrong with a file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "words"), [
    ("{", r"instances_train2017\.json cannot be read as JSON \(.*\); download it again"),
    ("[" * 100_000, r"instances_train2017\.json cannot be read as JSON"),
    ("[]", r"instances_train2017\.json has no list of images"),
    ('{"images": [], "annotations": [3]}', r"has no list of annotations, so it is not in the form of COCO's instances"),
    ('{"images": [], "annotations": [], "categories": []}', "has no category"),
    ('{"images": [], "annotations": [], "categories": [{"id": "3", "name": "cat"}]}', "a category has no number `id`"),
    (
        '{"images": [], "annotations": [], "categories": [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]}',
        "dog and cat are both category 3",
    ),
    ('{"images": [], "annotations": [], "categories": [{"id": 3, "name": "cat"}]}', "has other categories than"),
])  # fmt: skip
def test_a_file_of_another_form_is_refused(root: Path, content: str, words: str) -> None:
    (root / "annotations" / "instances_train2017.json").write_text(content)
    with pytest.raises(UserError, match=words):
        load_small(root)


def test_two_categories_of_one_name_are_refused(root: Path) -> None:
    edit(root, lambda content: content["categories"].append({"id": 91, "name": "cat"}))
    with pytest.raises(UserError, match="COCO: cat is the name of two classes"):
        load_small(root, test=None)


@pytest.mark.parametrize(("options", "words"), [
    ({"train": "train2014"}, r"no .*instances_train2014\.json; set data\.source\.train to one of train2017, val2017"),
    ({"test": "train2017"}, r"data\.source\.test=train2017 is data\.source\.train too"),
    ({"classes": ["cow"]}, r"data\.source\.classes: there is no category cow; there are cat, dog, toothbrush"),
])  # fmt: skip
def test_options_that_cannot_be(root: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_small(root, **options)


def test_a_missing_folder_is_named(root: Path) -> None:
    (root / "val2017").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"There is no folder .*val2017 with the images of instances_val2017\.json"):
        load_small(root)
    with pytest.raises(UserError, match=r"there is no folder .*gone\. Put annotations/"):
        load_small(root / "gone")


# ---- the real files -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not UNPACK.is_file(), reason="the real files are not in ../shared/data")
def test_bccd_is_the_same_in_both_layouts(tmp_path: Path) -> None:
    """The XML files, read here once more and written as COCO's JSON, give the same images, boxes and rejections."""
    from xml.etree import ElementTree

    subprocess.run([UNPACK, tmp_path, "bccd"], check=True, capture_output=True)
    folder, classes = tmp_path / "bccd" / "BCCD", ["RBC", "WBC", "Platelets"]
    for split, listed in (("train2017", "trainval"), ("val2017", "test")):
        content: Content = {"images": [], "annotations": []}
        content["categories"] = [{"id": 5 * number, "name": name} for number, name in enumerate(classes)]
        for number, name in enumerate((folder / "ImageSets/Main" / f"{listed}.txt").read_text().split()):
            content["images"].append({"id": number, "file_name": f"{name}.jpg", "width": 640, "height": 480})
            for each in ElementTree.parse(folder / "Annotations" / f"{name}.xml").iter("object"):
                x1, y1, x2, y2 = (int(each.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
                box = [x1 - 1, y1 - 1, (x2 - x1 + 1) * (x1 < x2), y2 - y1 + 1]
                category = 5 * classes.index(each.findtext("name"))
                content["annotations"].append(annotation(len(content["annotations"]), number, category, box))
        write_content(tmp_path / "bccd", content, split)
    (tmp_path / "bccd" / "images").symlink_to(folder / "JPEGImages")
    coco = load(tmp_path / "bccd", image_size=32)
    voc = load_voc(tmp_path / "bccd", classes=classes, image_size=32)
    order = [voc.names.index(Path(name).stem) for name in coco.names]
    assert sorted(order) == list(range(364))
    assert coco.images.tobytes() == voc.images[order].tobytes()
    for item, number in enumerate(order):
        assert coco.boxes[item].tobytes() == voc.boxes[number].tobytes()
        assert coco.box_labels[item].tolist() == voc.box_labels[number].tolist()
        assert coco.official_split[item] == voc.official_split[number]
    assert sorted(Path(name).name.replace(".jpg", "") for name, _ in coco.left_out) == [
        name for name, _ in voc.left_out
    ]
    assert {why for _, why in coco.left_out} == {"its box has no area"}


@pytest.mark.parametrize(
    ("info", "title", "licence"),
    [
        (None, "Images with boxes in the layout of COCO", "not stated"),
        ({"description": "Cats of the yard", "contributor": "me"}, "Cats of the yard", "not stated"),
        ({"description": "COCO 2017 Dataset", "url": "http://cocodataset.org"}, "COCO", "annotations: CC BY 4.0; "),
    ],
)
def test_a_card_claims_what_the_files_say_of_themselves(root: Path, info: Any, title: str, licence: str) -> None:
    for split in ("train2017", "val2017"):
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"info": info}))
    raw = load_small(root)
    assert raw.title == title
    assert raw.licence.startswith(licence)
