"""The layout of Pascal VOC: files written here, one flaw each; and the real BCCD, where it is at hand."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convatlas.core.config import DataConfig, SplitConfig
from convatlas.core.errors import UserError
from convatlas.data.prepare_dataset import prepare
from convatlas.data.prepared import PreparedData
from convatlas.data.raw import RawDataset
from convatlas.data.sources.pascal_voc import load
from convatlas.data.verification import verify
from helpers import ROOT

UNPACK = ROOT.parent / "shared" / "data" / "unpack"
WIDTH, HEIGHT = 40, 30
NAMES = ["a", "b", "c", "d"]
Object = tuple[str, tuple[Any, ...]]
CAT, DOG = ("cat", (1, 1, 20, 10)), ("dog", (11, 11, 40, 30))


def picture(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def xml(*objects: Object, size: tuple[int, int] = (WIDTH, HEIGHT), filename: str = "b.jpg", extra: str = "") -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    marked = ""
    for name, box in objects:
        inner = "".join(f"<{corner}>{value}</{corner}>" for corner, value in zip(corners, box, strict=True))
        marked += f"<object><name>{name}</name>{extra}<bndbox>{inner}</bndbox></object>"
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{sides}{marked}</annotation>"


def write_tree(folder: Path, names: list[str] = NAMES) -> Path:
    """Write images with a cat and a dog each, and no lists."""
    for part in ("Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    for seed, name in enumerate(names):
        picture(seed).save(folder / "JPEGImages" / f"{name}.png")
        (folder / "Annotations" / f"{name}.xml").write_text(xml(CAT, DOG))
    return folder


def write_lists(folder: Path, **lists: str) -> None:
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True, exist_ok=True)
    for name, members in lists.items():
        (main / f"{name}.txt").write_text("\n".join(members.split(",")) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "raw")


def load_small(root: Path, **other: Any) -> RawDataset:
    return load(root, **({"classes": ["cat", "dog"], "image_size": 20} | other))


# ---- what is right --------------------------------------------------------------------------------------------------


def test_corners_are_pixels_counted_from_one_and_both_belong_to_the_box(root: Path) -> None:
    """In 40 x 30 pixels (1, 1, 20, 10) is the left half of the upper third, (11, 11, 40, 30) the lower right."""
    raw = load_small(root, fit="stretch")
    assert raw.classes == ["background", "cat", "dog"]
    assert raw.box_labels[0].tolist() == [1, 2]
    np.testing.assert_allclose(raw.boxes[0], [[0, 0, 10, 20 / 3], [5, 20 / 3, 20, 20]], rtol=1e-6)
    assert (raw.left_out, verify(raw, "voc").rejected) == ([], ())


def test_a_letterbox_keeps_the_proportions_and_moves_the_boxes(root: Path) -> None:
    """40 x 30 becomes 20 x 15, and of five empty rows two lie above."""
    raw = load_small(root)
    np.testing.assert_allclose(raw.boxes[0], [[0, 2, 10, 7], [5, 7, 20, 17]], rtol=1e-6)
    assert not raw.images[:, :, :2].any()
    assert not raw.images[:, :, 17:].any()
    assert raw.images[:, :, 2:17].any(axis=1).all()


def test_a_box_lies_on_the_pixels_it_was_drawn_around(root: Path) -> None:
    dark = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    dark[10:30, 10:40] = 255
    Image.fromarray(dark).save(root / "JPEGImages" / "a.png")
    raw = load_small(root, image_size=40)
    x1, y1, x2, y2 = raw.boxes[0][1].astype(int)
    assert (raw.images[0, :, y1:y2, x1:x2] == 255).all()
    assert raw.images[0].sum() == 3 * 255 * (x2 - x1) * (y2 - y1)


def test_the_lists_make_the_official_split_and_others_are_left_out(root: Path) -> None:
    write_lists(root, train="a", trainval="a,b", test="c", cat_train="d  1")
    raw = load_small(root)
    assert dict(zip(raw.names, raw.official_split.tolist(), strict=True)) == {"a": "train", "b": "train", "c": "test"}
    assert raw.left_out == [("d", "no list in ImageSets/Main has it")]


def test_another_list_may_be_the_test_and_wins_over_the_training_lists(root: Path) -> None:
    write_lists(root, train="a,d", val="c,d", trainval="a,c,d")
    assert load_small(root).official_split is None
    raw = load_small(root, test_list="val")
    assert raw.official_split.tolist() == ["train", "test", "test"]
    assert "In train.txt too, but in the test alone: 1 image." in raw.notes


def test_all_years_of_a_devkit_are_taken_together(tmp_path: Path) -> None:
    for year, lists in (("VOC2007", {"trainval": "a", "test": "b"}), ("VOC2012", {"trainval": "e"})):
        folder = write_tree(tmp_path / "VOCdevkit" / year, ["a", "b"] if year == "VOC2007" else ["e"])
        write_lists(folder, **lists)
    raw = load_small(tmp_path)
    assert raw.names == ["VOCdevkit/VOC2007/a", "VOCdevkit/VOC2007/b", "VOCdevkit/VOC2012/e"]
    assert raw.official_split.tolist() == ["train", "test", "train"]


def test_an_image_without_objects_is_background(root: Path) -> None:
    (root / "Annotations" / "b.xml").write_text(xml())
    raw = load_small(root)
    assert (raw.boxes[1].shape, raw.left_out) == ((0, 4), [])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_colours_become_rgb(root: Path, mode: str) -> None:
    (root / "JPEGImages" / "b.png").unlink()
    picture(1).convert(mode).save(root / "JPEGImages" / "b.tif")
    raw = load_small(root)
    assert raw.images.shape == (4, 3, 20, 20)
    assert raw.converted == ({} if mode == "L" else {f"mode {mode}": 1})


def test_a_photograph_is_turned_as_its_annotation_wants(root: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the file's rows are the columns of what is seen
    picture(1).save(root / "JPEGImages" / "b.png", exif=turned)
    as_stored = load_small(root).images[1]
    (root / "Annotations" / "b.xml").write_text(xml(CAT, size=(HEIGHT, WIDTH)))
    as_seen = load_small(root).images[1]
    assert (as_stored[:, 2:17].any(), as_stored[:, :2].any()) == (True, False)
    assert (as_seen[..., 2:17].any(), as_seen[..., :2].any()) == (True, False)


# ---- what is wrong with an object -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "reason", "count"), [
    (("dog", (5, 5, 5, 5)), "its box has no area", "1 without area"),
    (("dog", (9, 5, 4, 20)), "its box has no area", "1 without area"),
    (("dog", (61, 5, 70, 9)), "its box 60, 4, 70, 9 lies outside the image of 40 x 30 pixels", "1 outside their image"),
    (("dog", (31, 1, 60, 30)), "by more than a half", "1 outside their image"),
    (("cow", (1, 1, 9, 9)), "its class is none of cat, dog", "1 of another class"),
    (("dog", (1, 1, "", 9)), "its box is not four numbers", "1 without a box"),
    (("dog", (1, "nan", 9, 9)), "its box is not four numbers", "1 without a box"),
    (CAT, "it is marked twice", "1 marked twice"),
])  # fmt: skip
def test_a_bad_object_is_named_and_counted_and_the_others_stay(
    root: Path, bad: Object, reason: str, count: str
) -> None:
    (root / "Annotations" / "b.xml").write_text(xml(CAT, bad, DOG))
    raw = load_small(root)
    [(name, found)] = raw.left_out
    assert name == f"b, object 2 ({bad[0]})"
    assert reason in found
    assert f"Left out of 9 marked objects: {count}." in raw.notes
    assert raw.box_labels[1].tolist() == [1, 2]
    assert verify(raw, "voc").rejected == ()


def test_an_image_none_of_whose_objects_can_be_used_is_no_background(root: Path) -> None:
    (root / "Annotations" / "b.xml").write_text(xml(("dog", (5, 5, 5, 9)), ("cow", (1, 1, 9, 9))))
    raw = load_small(root)
    assert raw.names == ["a", "c", "d"]
    assert raw.left_out[-1] == ("b", "none of its 2 objects can be used, and it is not background")


def test_a_box_mostly_inside_is_cut_at_the_edge_and_said(root: Path) -> None:
    (root / "Annotations" / "b.xml").write_text(xml(("dog", (0, 0, 20, 10))))  # counted from 0
    (root / "Annotations" / "c.xml").write_text(xml(("dog", (21, 1, 45, 30))))
    raw = load_small(root, image_size=40, fit="stretch")
    assert (raw.boxes[1][0, :2].tolist(), raw.boxes[2][0].tolist()) == ([0, 0], [20, 0, 40, 40])
    assert raw.left_out == []
    assert (
        "In 2 images a box reaches over the edge by 5 pixels at most and is cut there, by more than a pixel in c."
        in raw.notes
    )


def test_difficult_objects_are_left_out_counted_and_explained(root: Path) -> None:
    (root / "Annotations" / "b.xml").write_text(xml(CAT, extra="<difficult>1</difficult>"))
    (root / "Annotations" / "c.xml").write_text(xml(CAT, extra="<difficult>0</difficult>"))
    raw = load_small(root)
    assert raw.left_out[0] == ("b, object 1 (cat)", "it is marked as difficult")
    assert "Left out of 6 marked objects: 1 marked as difficult." in raw.notes
    assert any(note.startswith("Objects marked as difficult are neither trained on nor") for note in raw.notes)


# ---- what is wrong with a file --------------------------------------------------------------------------------------


def write_annotation(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "Annotations" / "b.xml").write_text(text)


def cut_image(root: Path) -> None:
    path = root / "JPEGImages" / "b.png"
    path.write_bytes(path.read_bytes()[:500])


def image_of_32_bits(root: Path) -> None:
    (root / "JPEGImages" / "b.png").unlink()
    Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.int32).reshape(HEIGHT, WIDTH)).save(root / "JPEGImages/b.tif")


BOMB = '<!DOCTYPE annotation [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda root: (root / "Annotations" / "b.xml").unlink(), "it has no annotation"),
    (lambda root: (root / "JPEGImages" / "b.png").unlink(), "there is an annotation, but no image"),
    (lambda root: picture(9).save(root / "JPEGImages" / "b.bmp"), "there are 2 images of its name, b.bmp and b.png"),
    (write_annotation(xml(CAT)[:90]), "its annotation cannot be read as XML (unclosed token"),
    (write_annotation(""), "its annotation cannot be read as XML"),
    (write_annotation(BOMB), "it has a document type, which may hide anything"),
    (lambda root: (root / "Annotations" / "b.xml").write_bytes(BOMB.encode("utf-16")), "it has a document type, which"),
    (write_annotation("<html></html>"), "its annotation begins with <html>, not with <annotation>"),
    (write_annotation(xml(CAT, filename="../../etc/passwd")), "the filename in its annotation leads out of the folder"),
    (write_annotation(xml(CAT, size=(30, 40))), "its annotation is for 30 x 40 pixels, but it has 40 x 30"),
    (cut_image, "it cannot be decoded: image file is truncated"),
    (image_of_32_bits, "it has 32 bits a pixel; only 8 and 16 are understood"),
    (lambda root: Image.new("RGB", (WIDTH, HEIGHT), "red").save(root / "JPEGImages/b.png"), "every pixel has the same"),
])  # fmt: skip
def test_a_bad_file_is_named_and_the_others_are_used(root: Path, damage: Callable[[Path], Any], reason: str) -> None:
    damage(root)
    raw = load_small(root)
    [(name, found)] = raw.left_out
    assert (name, raw.names) == ("b", ["a", "c", "d"])
    assert reason in found


def test_a_list_cannot_lead_out_of_the_folder(root: Path) -> None:
    (root.parent / "outside.xml").write_text(xml(CAT))
    write_lists(root, trainval="a,b,c,d,../../outside,gone")
    assert load_small(root).left_out == [
        ("../../outside", "its name leads out of the folder"),
        ("gone", "it has no annotation"),
    ]


@pytest.mark.parametrize("size", [(0, 0), (WIDTH, HEIGHT)])
def test_a_size_of_zero_means_that_it_is_not_known(root: Path, size: tuple[int, int]) -> None:
    (root / "Annotations" / "b.xml").write_text(xml(CAT, size=size))
    assert load_small(root).left_out == []


@pytest.mark.parametrize(("options", "words"), [
    ({"test_list": "tset"}, r"data\.source\.test_list=tset is no list of Pascal VOC; use one of train, val"),
    ({"fit": "crop"}, r"data\.source\.fit=crop is not known; use letterbox or stretch"),
    ({"image_size": 8}, r"data\.source\.image_size=8 leaves nothing to see; use 16 or more"),
    ({"image_size": 10**6}, r"data\.source\.image_size=1000000 is too large; use 8192 or less"),
    ({"classes": []}, r"data\.source\.classes=\[\] names no class"),
    ({"classes": ["cat", "cat"]}, "cat is the name of two classes"),
    ({"classes": ["cow"]}, "no image is usable; a, object 1 .cat.: its class is none of cow"),
])  # fmt: skip
def test_options_that_cannot_be(root: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_small(root, **options)


@pytest.mark.parametrize(("gone", "words"), [
    (".", r"there is no folder .*raw\. Put Annotations/ and JPEGImages/ there"),
    ("Annotations", "there is no folder Annotations in"),
    ("JPEGImages", r"there is no folder .*JPEGImages\. Put the images there"),
])  # fmt: skip
def test_a_missing_folder_is_named(root: Path, gone: str, words: str) -> None:
    (root / gone).rename(root.parent / "elsewhere")
    with pytest.raises(UserError, match=words):
        load_small(root)


def test_the_data_card_names_what_is_left_out(root: Path, tmp_path: Path) -> None:
    (root / "Annotations" / "b.xml").write_text(xml(CAT, DOG, ("dog", (5, 5, 5, 5))))
    cut = root / "JPEGImages" / "c.png"
    cut.write_bytes(cut.read_bytes()[:500])
    config = DataConfig(
        name="voc",
        task="detection",
        source={"_target_": "convatlas.data.sources.pascal_voc.load", "classes": ["cat", "dog"], "image_size": 20},
        root=root,
        prepared=tmp_path / "prepared" / "voc",
        image_size=20,
        in_channels=3,
        num_classes=3,
        split=SplitConfig(validation=0.4, test=0.3, seed=0),
    )
    card = prepare(config)
    assert [bad.item for bad in card.rejected] == ["b, object 3 (dog)", "c"]
    splits = PreparedData.open(config.prepared, verify=True).splits.values()
    assert sum(map(len, splits)) == 3
    assert sum(len(split.boxes) for split in splits) == 6


# ---- the real files -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not UNPACK.is_file(), reason="the real files are not in ../shared/data")
def test_bccd_and_its_known_defects(tmp_path: Path) -> None:
    subprocess.run([UNPACK, tmp_path, "bccd"], check=True, capture_output=True)
    raw = load(tmp_path / "bccd", classes=["RBC", "WBC", "Platelets"], image_size=64, fit="stretch")
    assert raw.left_out == [
        ("BloodImage_00338, object 13 (RBC)", "its box has no area"),
        ("BloodImage_00343, object 4 (RBC)", "its box has no area"),
    ]
    assert "Left out of 4888 marked objects: 2 without area." in raw.notes
    assert np.bincount(np.concatenate(raw.box_labels)).tolist() == [0, 4153, 372, 361]
    assert [(raw.official_split == split).sum() for split in ("train", "test")] == [292, 72]
    findings = verify(raw, "bccd")
    assert (len(findings.kept), findings.duplicates) == (364, 0)
