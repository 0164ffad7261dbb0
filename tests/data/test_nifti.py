"""NIfTI volumes in the layouts of ACDC and of the Medical Segmentation Decathlon, written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convatlas.core.config import SplitConfig
from convatlas.core.errors import UserError
from convatlas.data.card import Card
from convatlas.data.decoding import BadImageError
from convatlas.data.medical import decode_images
from convatlas.data.sources.nifti import load_acdc, load_decathlon
from convatlas.data.splits import split_items
from convatlas.data.squares import fit_image

SIZE = (24, 30, 3)  # along a row, down a column, slices


def write(path: Path, voxels: NDArray[Any], mm: tuple[float, ...] = (1.5, 2.0, 10.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = nib.Nifti1Image(voxels, np.diag([*mm[:3], 1.0]))
    volume.header.set_zooms((*mm[:3], *(1.0,) * (voxels.ndim - 3)))
    nib.save(volume, path)


def voxels_of(seed: int, channels: int = 0) -> NDArray[np.int16]:
    size = (*SIZE, channels) if channels else SIZE
    return np.random.default_rng(seed).integers(0, 3000, size).astype(np.int16)


def labels_of(number: int = 3) -> NDArray[np.uint8]:
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[8:12, 10:20] = number
    return labels


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    """Write four patients with two phases each."""
    root = tmp_path / "acdc"
    for patient in range(1, 5):
        folder = root / "training" / f"patient{patient:03d}"
        for frame in (1, 12):
            stem = folder / f"patient{patient:03d}_frame{frame:02d}"
            write(stem.with_name(f"{stem.name}.nii.gz"), voxels_of(100 * patient + frame))
            write(stem.with_name(f"{stem.name}_gt.nii.gz"), labels_of())
        write(folder / f"patient{patient:03d}_4d.nii.gz", np.zeros((4, 4, 2, 2), dtype=np.int16))
    return root


def volume(root: Path, patient: int = 2, frame: int = 1, gt: str = "") -> Path:
    return root / "training" / f"patient{patient:03d}" / f"patient{patient:03d}_frame{frame:02d}{gt}.nii.gz"


def test_acdc_is_read_slice_by_slice_and_turned_to_rows_and_columns(acdc: Path) -> None:
    raw = load_acdc(acdc, image_size=30, pixel_mm=None)
    assert len(raw) == 4 * 2 * 3
    assert raw.names[4] == "patient001_frame12.nii.gz, slice 1"
    np.testing.assert_allclose(raw.spacing[0], [2.0, 1.5])  # from row to row, from column to column
    rows, columns = np.nonzero(raw.masks[0] == 3)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (10, 4)


def test_acdc_is_resampled_to_square_pixels(acdc: Path) -> None:
    raw = load_acdc(acdc, image_size=64, pixel_mm=1.0)
    rows, columns = np.nonzero(raw.masks[0] == 3)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 6)
    np.testing.assert_allclose(raw.spacing, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_both_phases_of_a_patient_stay_together(acdc: Path, seed: int) -> None:
    raw = load_acdc(acdc, image_size=32)
    parts = split_items(raw, SplitConfig(validation=0.25, test=0.25, seed=seed), "acdc")
    of_split = [{name[:10] for name in np.array(raw.names)[items]} for items in parts.values()]
    assert [len(each) for each in of_split] == [2, 1, 1]
    assert len(set.union(*of_split)) == 4


def truncate(root: Path) -> None:
    path = volume(root)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_image(root: Path) -> None:
    volume(root).unlink()


def other_size(root: Path) -> None:
    write(volume(root, gt="_gt"), labels_of()[:-1])


def no_spacing(root: Path) -> None:
    broken = nib.Nifti1Image(voxels_of(7), np.eye(4))
    broken.header["pixdim"][1:3] = 0
    nib.save(broken, volume(root))


def unknown_label(root: Path) -> None:
    write(volume(root, gt="_gt"), labels_of(9))


@pytest.mark.parametrize(("damage", "left_out", "reason"), [
    (truncate, 1, "patient002_frame01.nii.gz is cut short or damaged"),
    (no_image, 1, "patient002_frame01.nii.gz is missing"),
    (other_size, 1, "its mask has 23 x 30 x 3 voxels, the volume 24 x 30 x 3"),
    (no_spacing, 3, "the size of a pixel is not given"),
    (unknown_label, 3, "the mask has the unknown label 9; known are 0 to 3"),
])  # fmt: skip
def test_a_bad_volume_is_named_and_the_others_are_used(acdc: Path, damage: Any, left_out: int, reason: str) -> None:
    damage(acdc)
    raw = load_acdc(acdc, image_size=32)
    assert len(raw) == 21
    assert len(raw.left_out) == left_out
    assert all(name.startswith("patient002_frame01") and found == reason for name, found in raw.left_out)


@pytest.fixture
def decathlon(tmp_path: Path) -> Path:
    """Write a task of two modalities and three cases."""
    root = tmp_path / "Task99"
    pairs = []
    for case in range(3):
        write(root / "imagesTr" / f"case_{case}.nii.gz", voxels_of(case, channels=2))
        write(root / "labelsTr" / f"case_{case}.nii.gz", labels_of(2))
        pairs.append({"image": f"./imagesTr/case_{case}.nii.gz", "label": f"./labelsTr/case_{case}.nii.gz"})
    labels = {"0": "background", "1": "edema", "2": "tumour"}
    text = {"name": "Made", "licence": "CC-BY-SA 4.0", "reference": "nobody", "labels": labels, "training": pairs}
    (root / "dataset.json").write_text(json.dumps(text))
    return root


def test_the_decathlon_s_list_names_classes_cases_and_licence(decathlon: Path) -> None:
    raw = load_decathlon(decathlon, image_size=32)
    assert raw.images.shape == (9, 2, 32, 32)
    assert raw.classes == ["background", "edema", "tumour"]
    assert (raw.title, raw.licence) == ("Made", "CC-BY-SA 4.0")
    assert raw.groups.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert not np.array_equal(raw.images[0, 0], raw.images[0, 1])


@pytest.mark.parametrize("text", ["{", "{}", '{"labels": {"0": "background"}, "training": [{}]}'])
def test_a_damaged_list_is_named(decathlon: Path, text: str) -> None:
    (decathlon / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json cannot be read as the list of a task"):
        load_decathlon(decathlon)


def test_test_cases_make_the_test_split(decathlon: Path) -> None:
    raw = load_decathlon(decathlon, image_size=32, test_patients=["case_1"])
    assert raw.official_split.tolist() == ["train"] * 3 + ["test"] * 3 + ["train"] * 3


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for load in (load_acdc, load_decathlon):
        with pytest.raises(UserError, match=r"there is no folder .*gone"):
            load(tmp_path / "gone")


def placed(voxels: NDArray[Any], affine: NDArray[np.float64]) -> nib.Nifti1Image:
    return nib.Nifti1Image(voxels, affine)


def bright_where_marked(dtype: Any = np.int16) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[3:12, 5:15] = 3
    return np.where(labels, 200, 20).astype(dtype), labels


AFFINE = np.diag([1.5, 2.0, 10.0, 1.0])
FLIPS: dict[str, tuple[Any, NDArray[np.float64]]] = {
    "as the image": (lambda labels: labels, AFFINE),
    "flipped": (lambda labels: labels[::-1], AFFINE @ [[-1, 0, 0, 23], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    "flipped twice": (
        lambda labels: labels[:, ::-1, ::-1],
        AFFINE @ [[1, 0, 0, 0], [0, -1, 0, 29], [0, 0, -1, 2], [0, 0, 0, 1]],
    ),
    "other axes": (
        lambda labels: labels.transpose(1, 0, 2),
        AFFINE @ [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    ),
}


@pytest.mark.parametrize("kind", FLIPS)
def test_a_mask_is_turned_to_its_volume(acdc: Path, kind: str) -> None:
    change, affine = FLIPS[kind]
    voxels, labels = bright_where_marked()
    nib.save(placed(voxels, AFFINE), volume(acdc))
    nib.save(placed(np.ascontiguousarray(change(labels)), np.asarray(affine, dtype=float)), volume(acdc, gt="_gt"))
    raw = load_acdc(acdc, image_size=30, pixel_mm=None)
    assert raw.left_out == []
    for item in [n for n, name in enumerate(raw.names) if name.startswith("patient002_frame01")]:
        assert (raw.images[item, 0][raw.masks[item] == 3] == 255).all()
        assert (raw.masks[item] == 3).sum() == 90


def test_a_mask_that_lies_elsewhere_is_left_out(acdc: Path) -> None:
    voxels, labels = bright_where_marked()
    nib.save(placed(voxels, AFFINE), volume(acdc))
    moved = AFFINE.copy()
    moved[0, 3] = 15
    nib.save(placed(labels, moved), volume(acdc, gt="_gt"))
    raw = load_acdc(acdc, image_size=30)
    assert raw.left_out == [("patient002_frame01.nii.gz", "its mask lies elsewhere in space: their affines differ")]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_grey_levels_are_stretched_whatever_the_type(acdc: Path, dtype: Any) -> None:
    voxels, labels = bright_where_marked(dtype)
    nib.save(placed(voxels, AFFINE), volume(acdc))
    nib.save(placed(labels, AFFINE), volume(acdc, gt="_gt"))
    raw = load_acdc(acdc, image_size=24, pixel_mm=None)
    image = raw.images[raw.names.index("patient002_frame01.nii.gz, slice 1"), 0]
    assert np.unique(image).tolist() == [0, 255]


def test_the_folder_of_the_test_is_the_test(acdc: Path) -> None:
    (acdc / "testing").mkdir()
    (acdc / "training" / "patient003").rename(acdc / "testing" / "patient003")
    raw = load_acdc(acdc, image_size=32)
    in_test = {name[:10] for name, split in zip(raw.names, raw.official_split, strict=True) if split == "test"}
    assert in_test == {"patient003"}


def test_a_volume_without_mask_is_listed(acdc: Path) -> None:
    volume(acdc, gt="_gt").unlink()
    assert load_acdc(acdc, image_size=32).left_out == [("patient002_frame01.nii.gz", "it has no mask")]


def test_a_new_volume_gets_the_pixels_that_training_saw(acdc: Path) -> None:
    raw = load_acdc(acdc, image_size=26, pixel_mm=1.25)
    card = Card.model_construct(
        name="acdc", storage="arrays", image_shape=(1, 26, 26), fitted="millimetres", source={"pixel_mm": 1.25}
    )
    for number, image in enumerate(decode_images(volume(acdc, 1, 12), card)):
        assert image.spacing == (2.0, 1.5)
        found, _ = fit_image(image.pixels, card, 26, image.spacing)
        np.testing.assert_allclose(found.numpy() * 255, raw.images[3 + number], atol=1e-3)


def test_a_volume_with_pixels_that_no_scanner_has_is_left_out(acdc: Path) -> None:
    write(volume(acdc), voxels_of(1), (1e-30, 2.0, 10.0))
    write(volume(acdc, gt="_gt"), labels_of(), (1e-30, 2.0, 10.0))
    raw = load_acdc(acdc, image_size=26, pixel_mm=1.25)
    assert ["leave nothing of it" in reason for _, reason in raw.left_out] == [True] * 3
    card = Card.model_construct(image_shape=(1, 26, 26), fitted="millimetres", source={"pixel_mm": 1.25})
    (image, *_) = decode_images(volume(acdc), card)
    with pytest.raises(BadImageError, match="leave nothing of it"):
        fit_image(image.pixels, card, 26, image.spacing)


def test_the_geometry_of_millimetres_leads_back() -> None:
    card = Card.model_construct(
        name="acdc", storage="arrays", image_shape=(1, 50, 50), fitted="millimetres", source={"pixel_mm": 1.0}
    )
    pixels, box = np.zeros((1, 30, 41), np.uint8), np.array([[18.0, 10, 25, 21]])
    pixels[:, 10:21, 18:25] = 255
    image, geometry = fit_image(pixels, card, 100, (2.0, 1.5))
    rows, columns = torch.nonzero(image[0] > 0.5, as_tuple=True)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(geometry.forward(box)[0], found, atol=2)
    back = geometry.maps_back(image, (30, 41))[0] > 0.5
    assert (back == torch.from_numpy(pixels[0] > 0)).float().mean() > 0.98
