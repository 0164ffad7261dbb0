"""Pictures and masks in two folders, written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from convatlas.core.errors import UserError
from convatlas.data.prepared import PreparedData
from convatlas.data.raw import IGNORED
from convatlas.data.reader import Reader
from convatlas.data.sources.image_mask_folder import load
from convatlas.tasks.losses import CrossEntropy, soft_dice_loss
from helpers import prepare_data

NAMES = ["p1_a", "p1_b", "p2_a"]


def picture(seed: int, size: tuple[int, ...] = (40, 60, 3)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def mask(value: int = 1) -> NDArray[np.uint8]:
    area = np.zeros((40, 60), dtype=np.uint8)
    area[10:20, 20:40] = value
    return area


def save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        save(tmp_path / "raw" / "images" / f"{name}.png", picture(seed))
        save(tmp_path / "raw" / "masks" / f"{name}.png", mask())
    return tmp_path / "raw"


def test_pictures_are_scaled_with_their_masks(root: Path) -> None:
    raw = load(root, image_size=30)
    assert raw.images.shape == (3, 1, 30, 30)
    assert raw.masks.sum(axis=(1, 2)).tolist() == [50] * 3
    assert raw.names == [f"{name}.png" for name in NAMES]
    assert raw.groups.tolist() == [0, 1, 2]


def test_colours_are_kept_when_asked_for(root: Path) -> None:
    raw = load(root, image_size=60, channels=3)
    assert raw.images.shape == (3, 3, 60, 60)
    np.testing.assert_array_equal(raw.images[1, :, 10:50], picture(1).transpose(2, 0, 1))


def test_grey_is_that_of_pillow(root: Path) -> None:
    raw = load(root, image_size=60)
    expected = np.asarray(Image.fromarray(picture(2)).convert("L")).astype(int)
    assert np.abs(raw.images[2, 0, 10:50].astype(int) - expected).max() <= 1


def test_patients_are_found_in_the_names(root: Path) -> None:
    assert load(root, patient_pattern=r"^(p\d+)_").groups.tolist() == [0, 0, 1]
    raw = load(root, patient_pattern="^(p1)_")
    assert raw.left_out == [("p2_a.png", "its name does not fit data.source.patient_pattern=^(p1)_")]


def test_grey_levels_of_masks_become_class_numbers(root: Path) -> None:
    for name in NAMES:
        save(root / "masks" / f"{name}.png", mask(255))
    raw = load(root, image_size=60, mask_values=[0, 255])
    assert np.unique(raw.masks).tolist() == [0, 1]
    turned = load(root, image_size=60, mask_values=[255, 0])
    assert turned.masks[0, 10:50].sum() == 40 * 60 - 200


GREY_MASKS = {
    "grey": lambda mask: mask.convert("L"),
    "colours": lambda mask: mask.convert("RGB"),
    "opaque colours": lambda mask: mask.convert("RGBA"),
    "opaque grey": lambda mask: mask.convert("LA"),
    "16 bits": lambda mask: Image.fromarray(np.asarray(mask).astype(np.uint16)),
    "32 bits": lambda mask: mask.convert("I"),
}


@pytest.mark.parametrize("way", GREY_MASKS)
def test_a_grey_mask_may_be_stored_in_any_way(root: Path, way: str) -> None:
    for name in NAMES:
        (root / "masks" / f"{name}.png").unlink()
        GREY_MASKS[way](Image.fromarray(mask(200))).save(root / "masks" / f"{name}.tif")
    raw = load(root, image_size=60, mask_values=[0, 200])
    assert raw.masks[:, 10:50].reshape(3, -1).sum(axis=1).tolist() == [200] * 3
    assert raw.left_out == []


def test_a_transparent_mask_is_none(root: Path) -> None:
    see_through = Image.fromarray(mask()).convert("RGBA")
    see_through.putalpha(128)
    see_through.save(root / "masks" / "p1_b.png")
    assert load(root).left_out == [("p1_b.png", "its mask has 4 channels that differ, not 1")]


def write_other_size(root: Path) -> None:
    save(root / "masks" / "p1_b.png", mask()[:-1])


def write_unknown_label(root: Path) -> None:
    save(root / "masks" / "p1_b.png", mask(5))


def write_colours(root: Path) -> None:
    save(root / "masks" / "p1_b.png", picture(5))


def cut_short(root: Path) -> None:
    path = root / "images" / "p1_b.png"
    path.write_bytes(path.read_bytes()[:200])


def remove_mask(root: Path) -> None:
    (root / "masks" / "p1_b.png").unlink()


@pytest.mark.parametrize(("damage", "reason"), [
    (write_other_size, "the mask has 39 x 60 pixels, the image 40 x 60"),
    (write_unknown_label, "the mask has the unknown label 5; known are 0 to 1"),
    (write_colours, "its mask has 3 channels that differ, not 1"),
    (cut_short, "it cannot be decoded: image file is truncated"),
    (remove_mask, "it has no mask"),
])  # fmt: skip
def test_a_bad_file_is_named_and_the_others_are_used(root: Path, damage: Any, reason: str) -> None:
    damage(root)
    raw = load(root, image_size=30)
    assert raw.left_out == [("p1_b.png", reason)]
    assert raw.names == ["p1_a.png", "p2_a.png"]


def test_an_unknown_grey_level_is_named(root: Path) -> None:
    assert load(root, mask_values=[0, 1]).left_out == []
    save(root / "masks" / "p1_b.png", mask(128))
    raw = load(root, mask_values=[0, 1])
    assert raw.left_out == [("p1_b.png", "its mask has the grey level 128, which is no class")]


def test_sixteen_bit_pictures_are_stretched_and_named(root: Path) -> None:
    ramp = np.linspace(500, 40_000, 2400).astype(np.uint16).reshape(40, 60)
    save(root / "images" / "p1_b.png", ramp)
    raw = load(root, image_size=60)
    assert any(note.startswith("1 images have 16 bits") and "p1_b.png" in note for note in raw.notes)
    levels = raw.images[1, 0, 10:50].ravel().astype(int)
    assert (levels[0], levels[-1]) == (0, 255)
    assert (np.diff(levels) >= 0).all()


@pytest.mark.parametrize(("options", "words"), [
    ({"channels": 2}, r"data\.source\.channels=2 must be 1"),
    ({"mask_values": [0]}, r"data\.source\.mask_values=\[0\] must have another grey level for each of 2"),
    ({"mask_values": [0, 0]}, r"data\.source\.mask_values=\[0, 0\] must have"),
    ({"patient_pattern": "("}, r"data\.source\.patient_pattern=\( is no regular expression"),
    ({"patient_pattern": "p"}, r"data\.source\.patient_pattern=p needs a group in brackets"),
])  # fmt: skip
def test_options_that_contradict(root: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(root, **options)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*images\. Put images/ and masks/"):
        load(tmp_path)


COLOURS = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]


def write_coloured(root: Path, *masks: NDArray[Any]) -> None:
    for number, mask in enumerate(masks):
        save(root / "images" / f"{number}.png", picture(number, (16, 16, 3)))
        save(root / "masks" / f"{number}.png", mask)


def test_empty_folders_are_named_with_what_belongs_there(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"nothing in it; put pictures into .*images and masks of the same names into"):
        load(tmp_path)


def test_colours_are_classes_and_one_of_them_is_ignored(tmp_path):
    numbers = np.repeat([0, 1, 2, 3], 4)[None].repeat(16, 0)
    painted = np.array([*COLOURS, [255, 255, 255]], dtype=np.uint8)[numbers]
    write_coloured(tmp_path, painted)
    options = {"classes": ["background", "red", "blue"], "mask_colours": COLOURS, "channels": 3, "image_size": 16}
    raw = load(tmp_path, **options, ignore=[255, 255, 255])
    assert np.array_equal(raw.masks[0], np.where(numbers == 3, IGNORED, numbers))
    with pytest.raises(UserError, match=r"its mask has the colour \[255, 255, 255\], which is no class"):
        load(tmp_path, **options)


def test_a_grey_level_is_ignored_where_masks_hold_class_numbers(tmp_path):
    write_coloured(tmp_path, np.array([[0, 1], [255, 1]], dtype=np.uint8).repeat(8, 0).repeat(8, 1))
    raw = load(tmp_path, ignore=255, channels=3, image_size=16)
    assert raw.masks[0, ::8, ::8].tolist() == [[0, 1], [IGNORED, 1]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mask_colours": COLOURS[:1]}, r"mask_colours=.* must have another colour for each of 2 classes"),
        ({"mask_colours": [[0, 0, 0], [0, 0, 256]]}, r"is not red, green and blue from 0 to 255"),
        ({"mask_colours": COLOURS[:2], "mask_values": [0, 1]}, r"are both set"),
        ({"mask_colours": COLOURS[:2], "ignore": 255}, r"data\.source\.ignore: 255 is not red, green and blue"),
        ({"ignore": 1}, r"data\.source\.ignore=1 is the value of a class"),
        ({}, r"channels that differ, not 1; data\.source\.mask_colours, for example"),
        ({"mask_values": [0, 255]}, r"channels that differ, not 1; data\.source\.mask_colours, for example"),
    ],
)
def test_a_legend_that_cannot_be_is_one_sentence(tmp_path, options, sentence):
    write_coloured(tmp_path, picture(0, (16, 16, 3)))
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, **options)


def test_what_is_ignored_is_neither_trained_on_nor_tested(tmp_path):
    masks = np.zeros((40, 16, 16), dtype=np.uint8)
    masks[:, :, 8:] = 1
    masks[:, :4] = 255
    write_coloured(tmp_path / "raw", *masks)
    options = [f"data.root={tmp_path / 'raw'}", "data.source.ignore=255", "data.image_size=16"]
    prepared = PreparedData.open(prepare_data("image_mask_folder", tmp_path, options))
    counts = prepared.card.counts["train"].classes
    assert counts["background"] == counts["foreground"] == prepared.card.counts["train"].images * 16 * 12 // 2
    assert not prepared.split("train").edges[:, :4].any()
    batch = Reader(prepared.split("train"), 16, canny=False).read(np.arange(4))
    assert (batch["masks"][:, :4] == -100).all()
    logits = torch.zeros(4, 2, 16, 16)
    logits[:, 0, :, :8] = logits[:, 1, :, 8:] = 20.0
    wrong = logits.clone()
    wrong[:, :, :4] = -logits[:, :, :4]
    assert torch.equal(CrossEntropy()(logits, batch["masks"]), CrossEntropy()(wrong, batch["masks"]))
    dice = [soft_dice_loss(each.softmax(1), batch["masks"]) for each in (logits, wrong)]
    assert dice[0] == dice[1] < 1e-3
