"""Edges found in preparation: Canny's on pixels from 0 to 255, and the band along the classes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from convatlas.data.edges import canny_edges, edge_targets


def step(height: int, side: int = 20) -> NDArray[np.uint8]:
    """Return one image, black on the left and of one grey on the right."""
    image = np.zeros((1, 1, side, side), dtype=np.uint8)
    image[..., side // 2 :] = height
    return image


def square(side: int = 20, low: int = 5, high: int = 15, number: int = 1) -> NDArray[np.uint8]:
    mask = np.zeros((1, side, side), dtype=np.uint8)
    mask[0, low:high, low:high] = number
    return mask


# ---- Canny ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "found"), [(24, False), (26, True), (255, True)])
def test_the_upper_threshold_is_100_of_a_sobel_filter_on_grey_levels(height: int, found: bool) -> None:
    """A step of h gives 4h in a 3x3 Sobel filter; an image scaled to 0..1, or to its mean, would have no edge."""
    edges = canny_edges(step(height))
    assert edges.any() == found
    assert set(np.unique(edges)) <= {0, 1}
    if found:
        columns = np.flatnonzero(edges[0].any(axis=0))
        assert {9, 10} >= set(columns.tolist())


def test_a_weak_edge_is_taken_where_it_hangs_on_a_strong_one() -> None:
    image = step(30)
    image[0, 0, 10:, 10:] = 15  # between the thresholds
    assert canny_edges(image)[0, 12:18].any()
    alone = step(15)
    assert not canny_edges(alone).any()


def test_the_edge_of_a_square_closes() -> None:
    image = np.zeros((1, 1, 20, 20), dtype=np.uint8)
    image[0, 0, 5:15, 5:15] = 200
    outside = ndimage.label(1 - canny_edges(image)[0])[1]
    assert outside == 2


def test_channels_are_averaged() -> None:
    gray = step(60)
    colours = np.concatenate([step(60), step(0), step(120)], axis=1)
    np.testing.assert_array_equal(canny_edges(colours), canny_edges(gray))


# ---- edges of classes -----------------------------------------------------------------------------------------------


def test_the_target_of_a_filled_square_is_a_closed_band_of_four_pixels() -> None:
    target = edge_targets(square())[0]
    parts, count = ndimage.label(1 - target)
    assert count == 2  # outside and inside do not touch
    assert parts[0, 0] != parts[10, 10]
    assert np.flatnonzero(target[10]).tolist() == [3, 4, 5, 6, 13, 14, 15, 16]


def test_the_band_is_as_far_as_the_radius_says() -> None:
    wide = edge_targets(square(), radius=3)[0]
    assert np.flatnonzero(wide[10]).tolist() == [2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 16, 17]
    corner = edge_targets(square())[0]
    assert corner[4, 4] == 1  # sqrt(2) from the square
    assert corner[3, 3] == 0  # sqrt(8)


def test_the_target_is_the_union_over_the_foreground_classes() -> None:
    one, other = square(number=1), square(low=8, high=12, number=2)
    both = np.where(other > 0, other, one)
    inner_hole = np.where(other > 0, 0, one)
    expected = edge_targets(inner_hole) | edge_targets(other)
    np.testing.assert_array_equal(edge_targets(both), expected)


def test_the_border_of_the_image_is_no_edge() -> None:
    full = np.ones((1, 9, 9), dtype=np.uint8)
    assert not edge_targets(full).any()
    half = full.copy()
    half[0, :, :4] = 0
    assert np.flatnonzero(edge_targets(half)[0, 0]).tolist() == [2, 3, 4, 5]


def test_without_a_foreground_there_is_no_edge() -> None:
    assert not edge_targets(np.zeros((2, 9, 9), dtype=np.uint8)).any()
