"""Hausdorff distances: by hand, against the definition over all pairs of points, and where a class is missing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from convatlas.tasks.hausdorff import DistanceMeans, hausdorff_distances, outlines


def squares(*corners: tuple[int, int, int, int], side: int = 24) -> Tensor:
    """Return one map for each `(top, left, bottom, right)`, 1 inside."""
    maps = torch.zeros(len(corners), side, side, dtype=torch.int64)
    for each, (top, left, bottom, right) in zip(maps, corners, strict=True):
        each[top:bottom, left:right] = 1
    return maps


def test_an_outline_is_what_touches_the_outside() -> None:
    outline = outlines(squares((2, 3, 7, 9)), 2)[0, 0]
    inner = squares((3, 4, 6, 8))[0].bool()
    assert torch.equal(outline, squares((2, 3, 7, 9))[0].bool() & ~inner)


def test_the_border_of_the_image_closes_an_outline() -> None:
    assert outlines(torch.ones(1, 5, 5, dtype=torch.int64), 2).sum() == 16


@pytest.mark.parametrize(("other", "distance"), [
    ((5, 5, 15, 15), 0.0),
    ((5, 8, 15, 18), 3.0),
    ((9, 8, 19, 18), 5.0),
    ((5, 5, 15, 21), 6.0),
])  # fmt: skip
def test_squares_of_known_distance(other: tuple[int, int, int, int], distance: float) -> None:
    found = hausdorff_distances(squares((5, 5, 15, 15)), squares(other), 2)
    assert found.tolist() == [[pytest.approx(distance)]]


def test_it_is_symmetric_and_the_larger_of_both_directions() -> None:
    whole, part = squares((5, 5, 15, 15)), squares((5, 5, 15, 8))
    assert hausdorff_distances(whole, part, 2) == hausdorff_distances(part, whole, 2) == 7


def test_random_maps_against_all_pairs_of_points() -> None:
    drawn = torch.randint(0, 3, (2, 4, 12, 12), generator=torch.Generator().manual_seed(0))
    spacing = torch.tensor([[1.0, 1.0], [0.5, 2.0], [1.25, 1.25], [3.0, 0.7]])
    found = hausdorff_distances(drawn[0], drawn[1], 3, spacing)
    for image in range(4):
        for number in (1, 2):
            ones, others = (outlines(maps[image][None], 3)[0, number - 1].nonzero() * spacing[image] for maps in drawn)
            pairs = torch.cdist(ones.double(), others.double())
            expected = max(pairs.amin(0).max(), pairs.amin(1).max())
            assert found[image, number - 1].item() == pytest.approx(expected.item())


def test_an_overlooked_class_is_the_image_s_diagonal_away_and_one_that_nobody_has_has_no_distance() -> None:
    something, nothing = squares((5, 5, 15, 15)), torch.zeros(1, 24, 24, dtype=torch.int64)
    spacing = torch.tensor([[2.0, 1.0]])
    for pair in ((something, nothing), (nothing, something)):
        assert hausdorff_distances(*pair, 2).item() == pytest.approx(24 * math.sqrt(2))
        assert hausdorff_distances(*pair, 2, spacing).item() == pytest.approx(24 * math.sqrt(5))
    assert hausdorff_distances(nothing, nothing, 2).isnan().all()


def test_means_do_not_depend_on_the_batches() -> None:
    distances = torch.tensor([[1.0, math.nan], [3.0, 4.0], [5.0, math.nan]], dtype=torch.float64)
    whole, parts = DistanceMeans(3), DistanceMeans(3)
    whole.update(distances, "mm")
    for row in distances:
        parts.update(row[None], "mm")
    assert whole.compute().tolist() == parts.compute().tolist() == [3.0, 4.0]
    assert whole.unit == "mm"
