"""Heart phantom: whole patients, a closed ring of muscle, no class that a threshold finds, seeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from convatlas.core.config import SplitConfig
from convatlas.core.errors import UserError
from convatlas.data.edges import edge_targets
from convatlas.data.raw import RawDataset
from convatlas.data.sources.heart_phantom import BACKGROUND, CAVITY, MUSCLE, RIGHT_VENTRICLE, load
from convatlas.data.splits import split_items

NOWHERE = Path("nowhere")
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@pytest.fixture(scope="module", params=[48, 64])
def phantom(request: pytest.FixtureRequest) -> RawDataset:
    return load(NOWHERE, patients=12, slices=6, image_size=request.param)


def masks_of(phantom: RawDataset) -> np.ndarray:
    assert phantom.masks is not None
    return phantom.masks


def test_whatever_touches_the_cavity_is_muscle(phantom: RawDataset) -> None:
    for mask in masks_of(phantom):
        cavity = mask == CAVITY
        around = ndimage.binary_dilation(cavity, EIGHT_NEIGHBOURS) & ~cavity
        assert set(mask[around].tolist()) == {MUSCLE}


def test_the_cavity_is_whole_and_one_ring_encloses_it(phantom: RawDataset) -> None:
    for mask in masks_of(phantom):
        assert ndimage.label(mask == CAVITY)[1] == 1
        assert ndimage.label(mask == MUSCLE)[1] == 1
        filled = ndimage.binary_fill_holes(mask == MUSCLE)
        np.testing.assert_array_equal(filled, (mask == MUSCLE) | (mask == CAVITY))


def test_the_heart_lies_inside_the_picture(phantom: RawDataset) -> None:
    masks = masks_of(phantom)
    assert (masks[:, [0, -1], :] == BACKGROUND).all()
    assert (masks[:, :, [0, -1]] == BACKGROUND).all()


def test_the_right_ventricle_touches_the_ring_and_is_missing_in_some_slices(phantom: RawDataset) -> None:
    has_it = []
    for mask in masks_of(phantom):
        right = mask == RIGHT_VENTRICLE
        has_it.append(bool(right.any()))
        if right.any():
            around = ndimage.binary_dilation(right, EIGHT_NEIGHBOURS) & ~right
            assert MUSCLE in mask[around]
            assert CAVITY not in mask[around]
    assert 0.6 < np.mean(has_it) < 1


def test_the_cavity_shrinks_from_base_to_apex() -> None:
    phantom = load(NOWHERE, patients=10, slices=6)
    areas = (masks_of(phantom) == CAVITY).sum(axis=(1, 2)).reshape(10, 6)
    assert (np.diff(areas, axis=1) < 0).all()


@pytest.mark.parametrize("number", [RIGHT_VENTRICLE, MUSCLE, CAVITY])
def test_no_interval_of_grey_levels_finds_a_class(number: int) -> None:
    """The best of all intervals, chosen in hindsight, stays far below what a net reaches."""
    phantom = load(NOWHERE, patients=12, slices=5)
    images, true = phantom.images[:, 0].reshape(-1), masks_of(phantom).reshape(-1) == number
    inside = np.concatenate([[0], np.cumsum(np.bincount(images[true], minlength=256))])
    taken = np.concatenate([[0], np.cumsum(np.bincount(images, minlength=256))])
    first, end = np.triu_indices(257)
    best = (2 * (inside[end] - inside[first]) / (taken[end] - taken[first] + true.sum())).max()
    assert best < 0.4


def test_no_split_divides_a_patient() -> None:
    phantom = load(NOWHERE, patients=30, slices=2)
    assert phantom.groups is not None
    np.testing.assert_array_equal(phantom.groups, np.repeat(np.arange(30), 2))
    parts = split_items(phantom, SplitConfig(validation=0.15, test=0.2, seed=0), "heart_phantom")
    patients = [set(phantom.groups[items].tolist()) for items in parts.values()]
    assert sum(map(len, patients)) == 30
    assert set.union(*patients) == set(range(30))


def test_the_same_seed_makes_the_same_bytes_and_more_patients_keep_the_first() -> None:
    few, more, other = load(NOWHERE, patients=2), load(NOWHERE, patients=3), load(NOWHERE, patients=2, seed=1)
    assert few.images.tobytes() == more.images[:12].tobytes()
    assert masks_of(few).tobytes() == masks_of(more)[:12].tobytes()
    assert few.images.tobytes() != other.images.tobytes()


def test_it_says_that_it_is_made() -> None:
    phantom = load(NOWHERE, patients=1)
    assert phantom.made
    assert any("made by a program" in note for note in phantom.notes)


@pytest.mark.parametrize(
    ("options", "word"), [({"patients": 0}, "patients=0"), ({"slices": 0}, "slices=0"), ({"image_size": 32}, "size=32")]
)
def test_it_refuses_what_makes_no_slices(options: dict[str, int], word: str) -> None:
    with pytest.raises(UserError, match=word):
        load(NOWHERE, **options)


def test_made_slices_have_no_size_in_millimetres_and_closed_edges() -> None:
    phantom = load(NOWHERE, patients=2, slices=3)
    assert phantom.spacing is None
    for mask, target in zip(masks_of(phantom), edge_targets(masks_of(phantom)), strict=True):
        inside_the_ring = ndimage.label((mask == CAVITY) & (target == 0))[0]
        outside = ndimage.label(1 - target)[0]
        assert outside[0, 0] == 1
        assert not (outside[inside_the_ring > 0] == 1).any()
