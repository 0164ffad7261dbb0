from __future__ import annotations

from typing import Any

import pytest
import torch
from small_sets import augmentation
from torch import Tensor

from convatlas.data.augmentation import (
    Augmenter,
    Changes,
    cut_out,
    flip,
    flip_boxes,
    pad_and_crop,
    rotate_and_zoom,
)
from convatlas.errors import UserError

EVERYTHING: dict[str, Any] = {
    "crop_padding": 2,
    "horizontal_flip": True,
    "cutout": 3,
    "rotation_degrees": 20,
    "scale": 0.2,
    "brightness": 0.3,
}


def images(count: int = 6, size: int = 8, channels: int = 2) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def masks(count: int = 6, size: int = 8, classes: int = 4) -> Tensor:
    return torch.randint(0, classes, (count, size, size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def changes(count: int = 6, size: int = 8, **parts: Any) -> Changes:
    return Augmenter(augmentation(**parts), "classification", size).draw(count, torch.Generator().manual_seed(3))


def apply(drawn: Changes, batch: Tensor) -> Tensor:
    return drawn.normalised(drawn.images(batch))


def test_nothing_switched_on_changes_no_bit() -> None:
    drawn = changes()
    assert torch.equal(apply(drawn, images()), images())
    assert torch.equal(drawn.masks(masks()), masks())


@pytest.mark.parametrize("part", EVERYTHING)
def test_each_image_has_its_own_draw(part: str) -> None:
    same = images(1, 16).expand(32, -1, -1, -1)
    changed = apply(changes(32, 16, **{part: EVERYTHING[part]}), same)
    variants = torch.unique(changed.flatten(1), dim=0)
    assert len(variants) >= (2 if part == "horizontal_flip" else 15)


@pytest.mark.parametrize("part", EVERYTHING)
def test_each_part_by_itself_depends_on_its_own_numbers(part: str) -> None:
    alone, among_others = changes(**{part: EVERYTHING[part]}), changes(**EVERYTHING)
    number = {
        "crop_padding": "shift",
        "horizontal_flip": "mirrored",
        "cutout": "hole",
        "rotation_degrees": "degrees",
        "scale": "zoom",
        "brightness": "brightness",
    }[part]
    assert torch.equal(getattr(alone, number), getattr(among_others, number))


def test_a_share_of_the_batch_is_changed_as_within_the_batch() -> None:
    drawn = changes(12, 16, **EVERYTHING)
    batch, classes = images(12, 16), masks(12, 16)
    for rank in range(3):
        share = slice(rank, None, 3)
        assert torch.equal(apply(drawn[share], batch[share]), apply(drawn, batch)[share])
        assert torch.equal(drawn[share].masks(classes[share]), drawn.masks(classes)[share])


def test_draws_lie_in_the_ranges_of_the_recipe() -> None:
    drawn = changes(4000, 8, **EVERYTHING)
    assert drawn.shift.unique().tolist() == [0, 1, 2, 3, 4]
    assert drawn.hole.unique().tolist() == list(range(8))
    assert 0.45 < drawn.mirrored.float().mean() < 0.55
    for numbers, low, high in ((drawn.degrees, -20, 20), (drawn.zoom, 0.8, 1.2), (drawn.brightness, 0.7, 1.3)):
        assert low <= numbers.min() < low + 0.01 * (high - low)
        assert high >= numbers.max() > high - 0.01 * (high - low)


def test_pad_and_crop_is_a_shift_with_black_from_outside() -> None:
    batch = images(9)
    shift = torch.tensor([[row, column] for row in (0, 1, 2) for column in (0, 1, 2)])
    cropped = pad_and_crop(batch, shift, 1)
    for image, result, (row, column) in zip(batch, cropped, shift.tolist(), strict=True):
        padded = torch.zeros(2, 10, 10)
        padded[:, 1:9, 1:9] = image
        assert torch.equal(result, padded[:, row : row + 8, column : column + 8])
    assert torch.equal(cropped[4], batch[4])


def test_flip_mirrors_exactly_the_chosen_images() -> None:
    batch = images(3)
    flipped = flip(batch, torch.tensor([True, False, True]))
    assert torch.equal(flipped, torch.stack([batch[0].flip(2), batch[1], batch[2].flip(2)]))


def test_flipped_boxes_hold_the_same_pixels() -> None:
    batch = images(1)
    boxes = torch.tensor([[1.0, 2.0, 4.0, 7.0], [0.0, 0.0, 8.0, 1.0]])
    mirrored = flip(batch, torch.tensor([True]))
    pairs = zip(boxes.int().tolist(), flip_boxes(boxes, 8).int().tolist(), strict=True)
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in pairs:
        assert torch.equal(mirrored[0, :, v1:v2, u1:u2], batch[0, :, y1:y2, x1:x2].flip(2))
    assert torch.equal(flip_boxes(flip_boxes(boxes, 8), 8), boxes)


@pytest.mark.parametrize("shape", [(8, 8), (6, 10)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_half_a_turn_is_two_flips(mode: str, shape: tuple[int, int]) -> None:
    batch = torch.rand(3, 2, *shape)
    turned = rotate_and_zoom(batch, torch.full((3,), 180.0), torch.ones(3), mode)
    torch.testing.assert_close(turned, batch.flip(2, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_quarter_turn_is_counter_clockwise(mode: str) -> None:
    batch = images(2)
    turned = rotate_and_zoom(batch, torch.tensor([90.0, -90.0]), torch.ones(2), mode)
    expected = torch.stack([torch.rot90(batch[0], 1, (1, 2)), torch.rot90(batch[1], -1, (1, 2))])
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)


def test_rotation_keeps_the_form_in_images_that_are_not_square() -> None:
    image = torch.zeros(1, 1, 21, 41)
    image[0, 0, 10, 15:26] = 1  # eleven pixels in a row, in the middle
    turned = rotate_and_zoom(image, torch.tensor([90.0]), torch.ones(1), "nearest")
    assert turned[0, 0, 5:16, 20].tolist() == [1.0] * 11
    assert turned.sum() == 11


def test_zoom_above_one_enlarges_about_the_centre() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3:5, 3:5] = 1
    enlarged = rotate_and_zoom(image, torch.zeros(1), torch.tensor([2.0]), "nearest")
    expected = torch.zeros(8, 8)
    expected[2:6, 2:6] = 1
    assert torch.equal(enlarged[0, 0], expected)


def test_masks_keep_to_their_classes_and_move_with_the_images() -> None:
    classes = masks(40, 16) * 50  # 0, 50, 100, 150: anything between two classes would show
    drawn = changes(40, 16, **EVERYTHING)
    moved = drawn.masks(classes)
    assert moved.dtype == classes.dtype
    assert set(moved.unique().tolist()) == {0, 50, 100, 150}
    shifted = changes(40, 16, crop_padding=2, horizontal_flip=True)
    assert torch.equal(shifted.masks(classes).float(), shifted.images(classes[:, None].float())[:, 0])


@pytest.mark.parametrize(("side", "pixels"), [(1, 1), (3, 9), (4, 16)])
def test_cutout_sets_one_square_to_zero(side: int, pixels: int) -> None:
    batch = torch.ones(2, 3, 9, 9)
    cut = cut_out(batch, torch.tensor([[4, 4], [4, 3]]), side)
    assert (cut == 0).sum((2, 3)).tolist() == [[pixels] * 3] * 2
    assert cut[0, 0, 4, 4] == 0
    assert cut[1, 0, 4, 3] == 0


def test_cutout_at_a_corner_loses_what_lies_outside() -> None:
    cut = cut_out(torch.ones(1, 1, 9, 9), torch.tensor([[0, 8]]), 5)
    expected = torch.ones(9, 9)
    expected[:3, 6:] = 0
    assert torch.equal(cut[0, 0], expected)


def test_brightness_multiplies_and_stays_in_range() -> None:
    drawn = changes(6, 8, brightness=0.5)
    expected = (images() * drawn.brightness.view(-1, 1, 1, 1)).clamp(0, 1)
    assert torch.equal(drawn.images(images()), expected)


@pytest.mark.parametrize("part", ["crop_padding", "cutout", "rotation_degrees", "scale"])
def test_detection_refuses_what_would_spoil_its_boxes(part: str) -> None:
    with pytest.raises(UserError, match=rf"^recipe\.augmentation\.{part}="):
        Augmenter(augmentation(**{part: EVERYTHING[part]}), "detection", 8)
    Augmenter(augmentation(horizontal_flip=True, brightness=0.1), "detection", 8)


def test_what_is_moved_along_keeps_its_brightness() -> None:
    drawn = changes(40, 16, **EVERYTHING)
    without = changes(40, 16, **(EVERYTHING | {"brightness": 0}))
    batch = images(40, 16, 1)
    assert torch.equal(drawn.moved(batch), without.images(batch))
    assert not torch.equal(drawn.images(batch), without.images(batch))
