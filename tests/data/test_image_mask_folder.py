"""Pictures and masks in two folders, written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convatlas.core.errors import UserError
from convatlas.data.sources.image_mask_folder import load

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
    (write_colours, "its mask has 3 channels, not 1"),
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
