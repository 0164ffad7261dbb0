"""Sunnybrook: DICOM with outlines as text, files written here; and the real ones, where they lie in data/raw."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from convatlas.core.config import DataConfig, SplitConfig
from convatlas.core.errors import UserError
from convatlas.data.prepare_dataset import prepare
from convatlas.data.prepared import PreparedData
from convatlas.data.sources.sunnybrook import load, outline_mask
from convatlas.data.splits import split_items
from convatlas.data.verification import verify
from helpers import ROOT

REAL = ROOT / "data" / "raw" / "sunnybrook"
SIDE = 64


def write_dicom(path: Path, pixels: NDArray[np.int16], spacing: tuple[float, float] | None) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dicom = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dicom.Rows, dicom.Columns = pixels.shape
    dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit, dicom.PixelRepresentation = 16, 16, 15, 1
    dicom.SamplesPerPixel, dicom.PhotometricInterpretation = 1, "MONOCHROME2"
    if spacing:
        dicom.PixelSpacing = list(spacing)
    dicom.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dicom.save_as(path, enforce_file_format=True)


def circle(radius: float, centre: float = SIDE / 2) -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return centre + 1 + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)  # the first pixel is 1


def write_contour(root: Path, patient: str, number: int, kind: str, points: NDArray[np.float64]) -> Path:
    folder = root / "contourfiles" / f"original-{patient}" / f"{kind}-contours"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"IM-0001-{number:04d}-{kind}contour-manual.txt"
    path.write_text("".join(f"{x:.2f} {y:.2f}\n" for x, y in points))
    return path


def slice_pixels(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 1500, size).astype(np.int16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write three patients of four slices; the first two slices of each have both outlines."""
    root = tmp_path / "raw"
    patients = ["SCD1", "SCD2", "SCD3"]
    root.mkdir()
    (root / "link.csv").write_text("patient_id,original_id\n" + "".join(f"{p},original-{p}\n" for p in patients))
    for order, patient in enumerate(patients):
        for number in (7, 20, 47, 120):
            write_dicom(root / "dicoms" / patient / f"{number}.dcm", slice_pixels(1000 * order + number), (1.25, 1.25))
            write_contour(root, patient, number, "i", circle(10))
            if number < 30:
                write_contour(root, patient, number, "o", circle(15))
    return root


def load_small(root: Path, **other: object) -> object:
    return load(root, image_size=SIDE, **other)  # type: ignore[arg-type]


def test_slices_outlines_and_pixel_sizes_come_together(root: Path) -> None:
    raw = load_small(root)
    assert len(raw) == 12
    assert raw.groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert raw.names[:2] == ["SCD1/7.dcm", "SCD1/20.dcm"]
    np.testing.assert_allclose(raw.spacing, 1.25)
    assert raw.masks[0].sum() == pytest.approx(np.pi * 100, rel=0.02)
    assert raw.left_out == []


def test_with_the_epicardium_only_slices_with_both_outlines_count(root: Path) -> None:
    raw = load_small(root, epicardium=True)
    assert len(raw) == 6
    assert raw.classes == ["background", "muscle", "cavity"]
    areas = [(raw.masks[0] == number).sum() for number in (1, 2)]
    assert areas == [pytest.approx(np.pi * (225 - 100), rel=0.03), pytest.approx(np.pi * 100, rel=0.02)]


def test_outlines_count_pixels_from_one() -> None:
    """Pixels 3 to 5 of a file, from edge to edge, are 2 to 4 here."""
    edge = 0.5
    points = np.array([[3 - edge, 3 - edge], [5 + edge, 3 - edge], [5 + edge, 4 + edge], [3 - edge, 4 + edge]]) - 1
    mask = outline_mask(points, (8, 8))
    assert np.argwhere(mask).min(0).tolist() == [2, 2]
    assert np.argwhere(mask).max(0).tolist() == [3, 4]


def damage_outside(root: Path) -> None:
    write_contour(root, "SCD2", 20, "i", circle(10, centre=SIDE - 5))


def damage_points(root: Path) -> None:
    write_contour(root, "SCD2", 20, "i", circle(10)[:2])


def damage_text(root: Path) -> None:
    write_contour(root, "SCD2", 20, "i", circle(10)).write_text("ten twelve\n")


def damage_dicom(root: Path) -> None:
    path = root / "dicoms" / "SCD2" / "20.dcm"
    path.write_bytes(path.read_bytes()[:900])


def damage_no_dicom(root: Path) -> None:
    (root / "dicoms" / "SCD2" / "20.dcm").unlink()


def damage_spacing(root: Path) -> None:
    write_dicom(root / "dicoms" / "SCD2" / "20.dcm", slice_pixels(3), None)


@pytest.mark.parametrize(("damage", "reason"), [
    (damage_outside, "its outline IM|leaves the image of 64 x 64 pixels, at x="),
    (damage_points, "does not have three points x y or more"),
    (damage_text, "its outline IM-0001-0020-icontour-manual.txt cannot be read"),
    (damage_dicom, "it cannot be read as DICOM"),
    (damage_no_dicom, "there is an outline, but no DICOM file of that number"),
    (damage_spacing, "the size of a pixel is not given"),
])  # fmt: skip
def test_a_bad_file_is_named_and_the_others_are_used(root: Path, damage: object, reason: str) -> None:
    damage(root)  # type: ignore[operator]
    raw = load_small(root)
    assert len(raw) == 11
    [(name, found)] = raw.left_out
    assert name == "SCD2/20.dcm"
    assert any(words in found for words in reason.split("|"))


def lose_outlines(root: Path) -> None:
    shutil.rmtree(root / "contourfiles" / "original-SCD2")


def misname_an_outline(root: Path) -> None:
    path = root / "contourfiles" / "original-SCD2" / "i-contours" / "IM-0001-0020-icontour-manual.txt"
    path.rename(path.with_name("slice20-icontour-manual.txt"))


@pytest.mark.parametrize(("change", "slices", "listed"), [
    (lose_outlines, 8, ("SCD2", "contourfiles/original-SCD2 has no outlines of it")),
    (misname_an_outline, 11, ("original-SCD2/slice20-icontour-manual.txt", "its name tells no slice")),
])  # fmt: skip
def test_what_has_no_outline_is_listed(
    root: Path, change: Callable[[Path], None], slices: int, listed: tuple[str, str]
) -> None:
    change(root)
    raw = load_small(root)
    assert (len(raw), raw.left_out) == (slices, [listed])


def test_what_is_left_out_stands_in_the_data_card(root: Path, tmp_path: Path) -> None:
    damage_outside(root)
    write_dicom(root / "dicoms" / "SCD1" / "47.dcm", np.zeros((SIDE, SIDE), dtype=np.int16), (1.25, 1.25))
    source = {"_target_": "convatlas.data.sources.sunnybrook.load", "image_size": SIDE}
    config = DataConfig(
        name="sunnybrook",
        task="segmentation",
        source=source,
        root=root,
        prepared=tmp_path / "prepared" / "sunnybrook",
        image_size=SIDE,
        in_channels=1,
        num_classes=2,
        split=SplitConfig(validation=0.3, test=0.3, seed=0),
    )
    card = prepare(config)
    assert [bad.item for bad in card.rejected] == ["SCD2/20.dcm", "SCD1/47.dcm"]
    assert "leaves the image" in card.rejected[0].reason
    assert card.rejected[1].reason == "every pixel has the value 0"
    splits = PreparedData.open(config.prepared, verify=True).splits.values()
    assert sum(map(len, splits)) == 10
    assert all(np.array_equal(split.spacing, np.full((len(split), 2), 1.25)) for split in splits)


def test_a_set_without_its_table_is_refused_and_writes_nothing(root: Path) -> None:
    (root / "link.csv").unlink()
    with pytest.raises(UserError, match=r"link\.csv cannot be read: No such file"):
        load_small(root)
    with pytest.raises(UserError, match=r"there is no folder .*gone\. Put link\.csv"):
        load_small(root / "gone")


def test_test_patients_make_the_test_split(root: Path) -> None:
    raw = load_small(root, test_patients=["SCD2"])
    parts = split_items(raw, SplitConfig(validation=0.5, test=0.0, seed=0), "sunnybrook")
    assert raw.groups[parts["test"]].tolist() == [1] * 4


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not in data/raw/sunnybrook")
@pytest.mark.parametrize("seed", range(3))
def test_no_real_patient_stands_in_two_splits(seed: int) -> None:
    raw = load(REAL)
    assert (len(raw), raw.left_out) == (96, [])
    used = raw.take(verify(raw, "sunnybrook").kept)
    parts = split_items(used, SplitConfig(validation=0.2, test=0.2, seed=seed), "sunnybrook")
    patients = [set(used.groups[items].tolist()) for items in parts.values()]
    assert sum(map(len, patients)) == 5
    assert set.union(*patients) == set(range(5))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not in data/raw/sunnybrook")
def test_the_real_outlines_lie_on_the_blood() -> None:
    """Blood is bright: inside the inner outline the pixels are brighter than in the muscle around it."""
    raw = load(REAL, epicardium=True)
    assert len(raw) == 37
    inside, around = (
        np.array([image[0][mask == number].mean() for image, mask in zip(raw.images, raw.masks, strict=True)])
        for number in (2, 1)
    )
    assert (inside > around).all()


# ---- tables and grey levels as other programs write them ------------------------------------------------------------

TABLE = "patient_id,original_id\np1,original-p1\np2,original-p2\n"


@pytest.mark.parametrize(
    ("content", "left_out"),
    [
        (TABLE.encode(), []),
        (b"\xef\xbb\xbf" + TABLE.encode(), []),
        (TABLE.replace("\n", "\r\n").encode(), []),
        (TABLE.encode() + b"p3\n", [("link.csv, line 4", "it has no patient_id or no original_id")]),
        (TABLE.encode() + b"../x,original-p1\n", [("link.csv, line 4", "it has no patient_id or no original_id")]),
    ],
    ids=["plain", "byte order mark", "line ends of Windows", "short row", "a row that leads out"],
)
def test_tables_of_any_program_are_read(tmp_path: Path, content: bytes, left_out: list[tuple[str, str]]) -> None:
    for number, patient in enumerate(("p1", "p2")):
        write_dicom(tmp_path / "dicoms" / patient / "1.dcm", slice_pixels(number), (1.25, 1.25))
        write_contour(tmp_path, patient, 1, "i", circle(9))
    (tmp_path / "link.csv").write_bytes(content)
    raw = load(tmp_path, image_size=SIDE)
    assert raw.names == ["p1/1.dcm", "p2/1.dcm"]
    assert raw.left_out == left_out


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "link.csv").write_bytes("patient_id,original_id\np1,José\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"link\.csv is no text in UTF-8; save it in that encoding"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("tags", "inverted"),
    [
        ({}, False),
        ({"PhotometricInterpretation": "MONOCHROME1"}, True),
        ({"RescaleSlope": "-1", "RescaleIntercept": "1500"}, True),
        ({"RescaleSlope": "-2", "PhotometricInterpretation": "MONOCHROME1"}, False),
        ({"RescaleSlope": "2", "RescaleIntercept": "-1000"}, False),
    ],
)
def test_bright_is_what_is_shown_bright(tmp_path: Path, tags: dict[str, str], inverted: bool) -> None:
    import pydicom

    ramp = np.tile(np.arange(SIDE, dtype=np.int16) * 20, (SIDE, 1))
    path = tmp_path / "dicoms" / "p1" / "1.dcm"
    write_dicom(path, ramp, (1.25, 1.25))
    dicom = pydicom.dcmread(path)
    for key, value in tags.items():
        setattr(dicom, key, value)
    dicom.save_as(path)
    write_contour(tmp_path, "p1", 1, "i", circle(9))
    (tmp_path / "link.csv").write_text("patient_id,original_id\np1,original-p1\n")
    row = load(tmp_path, image_size=SIDE).images[0, 0, 0].astype(int)
    assert (np.diff(row) <= 0 if inverted else np.diff(row) >= 0).all()
    assert {row[0], row[-1]} == {0, 255}
