"""Slices on their way into a data set: one pixel size, one square, 8 bits, and a list of what was left out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.decoding import stretched
from convatlas.data.raw import RawDataset
from convatlas.data.sources.slices import SliceCollector
from convatlas.data.squares import sampled

CLASSES = ["background", "cavity"]
TEXTS = {"title": "made", "origin": "a test", "licence": "none", "notes": []}


def disc(side: int, radius: float) -> NDArray[np.uint8]:
    rows, columns = np.indices((side, side)) - (side - 1) / 2
    return (np.hypot(rows, columns) < radius).astype(np.uint8)


def image_of(mask: NDArray[np.uint8]) -> NDArray[np.int16]:
    return 100 + 900 * mask.astype(np.int16)


def collected(*slices: tuple, side: int = 32, pixel_mm: float | None = 1.0, **other: bool) -> SliceCollector:
    collector = SliceCollector(CLASSES, side, pixel_mm, **other)
    for number, (image, mask, spacing) in enumerate(slices):
        collector.add(f"slice {number}", f"patient {number}", image, mask, spacing)
    return collector


def dataset(collector: SliceCollector) -> RawDataset:
    return collector.dataset(**TEXTS)


# ---- resampling -----------------------------------------------------------------------------------------------------


def test_a_square_from_the_middle_is_copied_where_the_pixels_keep_their_size() -> None:
    plane = np.arange(36).reshape(6, 6)
    np.testing.assert_array_equal(sampled(plane, 4, (1.0, 1.0), order=1), plane[1:5, 1:5])
    padded = sampled(plane, 8, (1.0, 1.0), order=0)
    np.testing.assert_array_equal(padded[1:7, 1:7], plane)
    assert padded.sum() == plane.sum()


@pytest.mark.parametrize(("length", "side"), [(7, 4), (6, 3), (5, 5)])
def test_odd_and_even_sides_are_copied_too(length: int, side: int) -> None:
    plane = np.arange(length**2, dtype=np.float64).reshape(length, length)
    cut = sampled(plane, side, (1.0, 1.0), order=1)
    np.testing.assert_array_equal(np.diff(cut, axis=1), 1)
    assert set(cut.ravel().tolist()) <= set(plane.ravel().tolist())


@pytest.mark.parametrize("mm", [(0.5, 0.5), (2.0, 2.0), (0.8, 1.6)])
def test_areas_in_square_millimetres_are_kept(mm: tuple[float, float]) -> None:
    """A disc of 10 mm in pixels of any size is a disc of 10 mm in pixels of 1 mm."""
    rows, columns = np.indices((80, 80)) - 39.5
    mask = (np.hypot(rows * mm[0], columns * mm[1]) < 10).astype(np.uint8)
    raw = dataset(collected((image_of(mask), mask, mm)))
    assert raw.masks is not None
    assert raw.masks.sum() == pytest.approx(np.pi * 100, rel=0.06)
    np.testing.assert_allclose(raw.spacing, [[1.0, 1.0]])


def test_without_a_pixel_size_asked_for_that_of_the_slice_is_kept() -> None:
    mask = disc(40, 8)
    raw = dataset(collected((image_of(mask), mask, (1.3, 1.4)), pixel_mm=None))
    np.testing.assert_allclose(raw.spacing, [[1.3, 1.4]], rtol=1e-6)
    np.testing.assert_array_equal(raw.masks[0], mask[4:36, 4:36])


def test_masks_get_no_labels_between_two_classes() -> None:
    collector = SliceCollector(["background", "one", "two", "three"], 32, 0.7)
    mask = 3 * disc(40, 9)
    collector.add("slice", "patient", image_of(disc(40, 9)), mask, (1.0, 1.0))
    assert set(np.unique(dataset(collector).masks)) == {0, 3}


def test_slices_without_a_pixel_size_are_scaled_to_the_side_and_padded() -> None:
    mask = np.zeros((20, 40), dtype=np.uint8)
    mask[5:15, 10:30] = 1
    raw = dataset(collected((image_of(mask), mask, None), side=20, with_spacing=False))
    assert raw.spacing is None
    assert raw.masks[0].sum() == mask.sum() / 4
    assert not raw.images[0, 0, :4].any()


# ---- grey levels ----------------------------------------------------------------------------------------------------


def test_sixteen_bits_become_eight_without_wrapping() -> None:
    ramp = np.linspace(0, 4000, 1001).astype(np.uint16).reshape(7, 143)
    scaled = stretched(ramp).ravel()
    assert (np.diff(scaled.astype(int)) >= 0).all()
    assert (scaled[0], scaled[-1]) == (0, 255)
    assert np.bincount(scaled, minlength=256)[[0, 255]].max() <= 9


def test_a_single_bright_pixel_does_not_darken_the_rest() -> None:
    image = np.random.default_rng(0).integers(0, 100, (32, 32)).astype(np.int16)
    expected = stretched(image).astype(int)
    image[3, 4], expected[3, 4] = 30_000, 255
    assert np.abs(stretched(image) - expected).max() <= 3


def test_negative_values_are_dark() -> None:
    """Cast to 8 bits they would wrap around to the brightest."""
    assert stretched(np.array([[-3.0, 0.0, 3.0]])).tolist() == [[0, 128, 255]]


def test_an_image_of_one_value_is_black() -> None:
    assert stretched(np.full((4, 4), 7.0)).tolist() == np.zeros((4, 4)).tolist()


# ---- what is left out -----------------------------------------------------------------------------------------------

GOOD = (image_of(disc(32, 8)), disc(32, 8), (1.0, 1.0))


@pytest.mark.parametrize(("image", "mask", "spacing", "reason"), [
    (GOOD[0], disc(30, 8), (1.0, 1.0), "the mask has 30 x 30 pixels, the image 32 x 32"),
    (GOOD[0], 7 * disc(32, 8), (1.0, 1.0), "the mask has the unknown label 7; known are 0 to 1"),
    (GOOD[0], 0.5 * disc(32, 8), (1.0, 1.0), "the mask has the unknown label 0.5; known are 0 to 1"),
    (GOOD[0], GOOD[1], None, "the size of a pixel is not given"),
    (GOOD[0], GOOD[1], (0.0, 1.0), "the size of a pixel is not given"),
    (np.full((32, 32), np.nan), GOOD[1], (1.0, 1.0), "the image has values that are no numbers"),
    (image_of(disc(60, 25)), disc(60, 25), (1.0, 1.0), "the mask reaches out of the 32 x 32 pixels that are kept"),
])  # fmt: skip
def test_a_bad_slice_is_named_and_the_others_are_used(
    image: NDArray, mask: NDArray, spacing: tuple[float, float] | None, reason: str
) -> None:
    collector = collected(GOOD, (image, mask, spacing), GOOD)
    assert collector.left_out == [("slice 1", reason)]
    assert dataset(collector).names == ["slice 0", "slice 2"]


def test_no_usable_slice_is_an_error_with_the_first_reason() -> None:
    with pytest.raises(UserError, match="made: no slice is usable; slice 0: the size of a pixel is not given"):
        dataset(collected((GOOD[0], GOOD[1], None)))


def test_patients_are_groups_and_test_patients_an_official_split() -> None:
    collector = SliceCollector(CLASSES, 32, 1.0)
    for patient in ("b", "a", "b"):
        collector.add(f"of {patient}", patient, *GOOD)
    raw = collector.dataset(**TEXTS, test_patients=["a"])
    assert raw.groups.tolist() == [1, 0, 1]
    assert raw.official_split.tolist() == ["train", "test", "train"]
    with pytest.raises(UserError, match=r"data\.source\.test_patients: there is no c; the patients are a, b"):
        collector.dataset(**TEXTS, test_patients=["c"])


@pytest.mark.parametrize(("side", "mm", "word"), [(0, 1.0, "image_size=0"), (8, 0.0, "pixel_mm=0")])
def test_sizes_that_are_none(side: int, mm: float, word: str) -> None:
    with pytest.raises(UserError, match=rf"data\.source\.{word}"):
        SliceCollector(CLASSES, side, mm)
