from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from small_sets import augmentation
from torch import Tensor

from convatlas.core.errors import UserError
from convatlas.data.augmentation import (
    Augmenter,
    Changes,
    check_used,
    cut_out,
    flip,
    flip_boxes,
    pad_and_crop,
    rotate_and_zoom,
)
from convatlas.data.augmentation.geometry import TRIALS, boxes_in_window, inception_windows, see_through, zoomed_out
from convatlas.data.augmentation.pixels import change_contrast, change_saturation, principal_colours, turn_hue

EVERYTHING: dict[str, Any] = {
    "crop_padding": 2,
    "horizontal_flip": True,
    "cutout": 3,
    "rotation_degrees": 20,
    "scale": 0.2,
    "brightness": 0.3,
    "contrast": 0.3,
    "random_area": (0.3, 0.9),
    "zoom_out": 2.0,
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
    assert len(variants) >= (2 if part == "horizontal_flip" else 12)


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
        "contrast": "contrast",
        "random_area": "partner",  # drawn after the windows, so it tells whether they took their numbers
        "zoom_out": "partner",
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


@pytest.mark.parametrize(("mode", "numpy_mode"), [("mean", "constant"), ("reflect", "reflect"), ("black", "constant")])
def test_padding_with_the_mean_colour_or_by_reflection(mode: str, numpy_mode: str) -> None:
    batch, mean = torch.rand(4, 3, 8, 8), torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1)
    drawn = changes(4, 8, crop_padding=2, crop_padding_mode=mode)
    colour = mean.numpy() if mode == "mean" else np.zeros((3, 1, 1))
    for image, result, (row, column) in zip(batch, drawn.images(batch, mean), drawn.shift.tolist(), strict=True):
        padded = np.pad(image.numpy() - colour, ((0, 0), (2, 2), (2, 2)), numpy_mode) + colour
        np.testing.assert_allclose(result, padded[:, row : row + 8, column : column + 8], atol=1e-6)


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


@pytest.mark.parametrize(
    ("task", "part", "value"),
    [
        *(("detection", part, EVERYTHING[part]) for part in ("crop_padding", "cutout", "rotation_degrees", "scale")),
        *((task, "rand_augment", 2) for task in ("detection", "segmentation")),
        *((task, part, 1.0) for task in ("detection", "segmentation") for part in ("mixup", "cutmix")),
    ],
)
def test_a_task_refuses_what_would_spoil_its_annotations(task: str, part: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^recipe\.augmentation\.{part}={value}[ .].*; for {task} set it to 0\.$"):
        Augmenter(augmentation(**{part: value}), task, 8)


def test_detection_takes_what_keeps_its_boxes_right() -> None:
    parts = {"horizontal_flip": True, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "colour_noise": 0.1}
    Augmenter(augmentation(**parts, random_area=(0.3, 1.0), zoom_out=2.0, image_sizes=(8, 16)), "detection", 8)


COLOURED = [("saturation", 0.2, 1), ("hue", 0.2, 1), ("rand_augment", 2, 2)]


@pytest.mark.parametrize(("part", "value", "channels"), COLOURED)
def test_operations_on_colours_refuse_other_channels(part: str, value: float, channels: int) -> None:
    with pytest.raises(UserError, match=rf"^recipe\.augmentation\.{part}={value} .*these have {channels}; set it to 0"):
        Augmenter(augmentation(**{part: value}), "classification", 8, channels)


UNUSED = [
    ("crop_padding_mode", "mean", "classification", {"crop_padding": 2}),
    ("rand_augment_magnitude", 5, "classification", {"rand_augment": 1}),
    ("least_box_area", 0.5, "detection", {"random_area": (0.5, 1.0)}),
]


@pytest.mark.parametrize(("part", "value", "task", "switched_on"), UNUSED)
def test_how_a_part_works_is_refused_where_it_is_switched_off(part, value, task, switched_on) -> None:
    check_used(augmentation(**{part: value}, **switched_on), task)
    with pytest.raises(UserError, match=rf"{part}={value} does nothing for {task} while .* is switched off; set it to"):
        check_used(augmentation(**{part: value}), task)


def test_without_boxes_their_least_area_is_refused() -> None:
    with pytest.raises(UserError, match=r"least_box_area=0.5 does nothing for segmentation; set it to 0.3"):
        check_used(augmentation(least_box_area=0.5, random_area=(0.5, 1.0)), "segmentation")


@pytest.mark.parametrize("areas", [(0.5, 0.2), (0.0, 1.0), (0.5, 1.5)])
def test_a_range_of_areas_that_is_none_is_refused(areas: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="random_area"):
        augmentation(random_area=areas)


def test_what_is_moved_along_keeps_its_brightness() -> None:
    drawn = changes(40, 16, **EVERYTHING)
    without = changes(40, 16, **(EVERYTHING | {"brightness": 0, "contrast": 0}))
    batch = images(40, 16, 1)
    assert torch.equal(drawn.moved(batch), without.images(batch))
    assert not torch.equal(drawn.images(batch), without.images(batch))


# ---- windows --------------------------------------------------------------------------------------------------------


def windows(count: int, limits: tuple[float, float]) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    areas, ratios = (torch.rand(count, TRIALS, generator=generator) for _ in range(2))
    return inception_windows(areas, ratios, torch.rand(count, 2, generator=generator), limits)


def test_inception_crops_have_the_papers_areas_and_shapes_and_lie_within_the_image() -> None:
    found = windows(4000, (0.08, 1.0))
    area, ratio = found[:, 2] * found[:, 3], found[:, 3] / found[:, 2]
    for numbers, low, high in ((area, 0.08, 1.0), (ratio, 3 / 4, 4 / 3)):
        assert low - 1e-5 <= numbers.min() < low + 0.01
        assert high + 1e-5 >= numbers.max() > high - 0.02
    assert 0.45 < (area < 0.5).float().mean() < 0.6  # larger areas fit less often
    assert found[:, :2].min() >= 0
    assert (found[:, :2] + found[:, 2:]).max() <= 1 + 1e-6


def test_a_shape_that_never_fits_gives_the_whole_image() -> None:
    high_and_long = inception_windows(torch.ones(1, TRIALS), torch.ones(1, TRIALS), torch.zeros(1, 2), (0.9, 1.0))
    assert high_and_long.tolist() == [[0, 0, 1, 1]]


def test_a_window_is_cut_out_and_scaled_back() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8)
    quarter = see_through(image, torch.tensor([[0.5, 0.25, 0.5, 0.5]]), "nearest")
    assert torch.equal(quarter, image[:, :, 2:6, 4:8].repeat_interleave(2, 2).repeat_interleave(2, 3))
    whole = see_through(image, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), "bilinear", samples=3)
    torch.testing.assert_close(whole, image, atol=1e-4, rtol=0)
    smooth = see_through(image, torch.tensor([[0.5, 0.25, 0.5, 0.5]]), "bilinear")
    expected = torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear")[:, :, 4:12, 8:16]
    torch.testing.assert_close(smooth, expected, atol=1e-4, rtol=0)


def test_zooming_out_lays_the_image_on_black_and_smooths_it() -> None:
    window = zoomed_out(torch.tensor([True, False]), torch.tensor([2.0, 2.0]), torch.tensor([[0.0, 1.0]] * 2))
    assert window.tolist() == [[0, -1, 2, 2], [0, 0, 1, 1]]
    stripes = torch.tensor([1.0, 0.0]).repeat(4).expand(2, 1, 8, 8)
    seen = see_through(stripes, window, "bilinear", samples=2)
    expected = torch.zeros(8, 8)
    expected[4:, :4] = 0.5  # of stripes one pixel wide only their mean is left
    torch.testing.assert_close(seen[0, 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1], stripes[1], atol=1e-5, rtol=0)


def test_boxes_follow_their_window_are_clipped_and_go_with_their_labels() -> None:
    boxes = torch.tensor([[4.0, 4.0, 6.0, 6.0], [0.0, 0.0, 5.0, 8.0], [0.0, 0.0, 4.0, 4.0], [3.0, 4.0, 7.0, 6.0]])
    window = torch.tensor([0.5, 0.5, 0.5, 0.5])  # the lower right quarter, twice enlarged
    seen, labels = boxes_in_window(boxes, torch.tensor([1, 2, 3, 4]), window, 8, 0.3)
    assert labels.tolist() == [1, 4]  # of the second a tenth is left, of the third nothing
    assert seen.tolist() == [[0, 0, 4, 4], [0, 0, 6, 4]]
    assert boxes_in_window(boxes, torch.tensor([1, 2, 3, 4]), window, 8, 0.1)[1].tolist() == [1, 2, 4]


def test_boxes_hold_the_same_pixels_after_a_window() -> None:
    drawn = Augmenter(augmentation(horizontal_flip=True, random_area=(0.1, 1.0), zoom_out=2.0), "detection", 64).draw(
        40, torch.Generator().manual_seed(3)
    )
    images_, boxes = torch.zeros(40, 1, 64, 64), torch.tensor([[20.0, 28.0, 36.0, 40.0]])
    images_[:, :, 28:40, 20:36] = 1
    moved, (seen, _) = drawn.images(images_), drawn.objects([boxes] * 40, [torch.ones(1, dtype=torch.int64)] * 40)
    there = 0
    for image, found in zip(moved[:, 0], seen, strict=True):
        for x1, y1, x2, y2 in found.tolist():
            rows, columns = (torch.nonzero(image.amax(1 - axis) > 0.5).flatten() for axis in (0, 1))
            edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(edges, [x1, y1, x2, y2], atol=1.0)
            there += 1
    assert 25 < there < 40


# ---- colours --------------------------------------------------------------------------------------------------------


def test_contrast_and_saturation_are_pillows_and_each_image_has_its_factor() -> None:
    from PIL import Image, ImageEnhance

    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    batch = torch.from_numpy(pixels).movedim(3, 1).float() / 255
    for change, enhance in ((change_contrast, ImageEnhance.Contrast), (change_saturation, ImageEnhance.Color)):
        changed = change(batch, torch.tensor([0.4, 1.7])).movedim(1, 3) * 255
        for result, original, factor in zip(changed, pixels, (0.4, 1.7), strict=True):
            expected = np.asarray(enhance(Image.fromarray(original)).enhance(factor), dtype=np.float32)
            np.testing.assert_allclose(result, expected, atol=2.0)  # Pillow rounds to whole numbers on the way


def test_hue_is_torchvisions_and_each_image_has_its_turn() -> None:
    from torchvision.transforms.v2.functional import adjust_hue

    batch = torch.rand(4, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    batch[0, :, :2] = batch[0, :1, :2]  # greys have no hue
    turns = torch.tensor([0.2, -0.35, 0.5, 0.0])
    expected = torch.stack([adjust_hue(image, float(turn)) for image, turn in zip(batch, turns, strict=True)])
    torch.testing.assert_close(turn_hue(batch, turns), expected, atol=1e-5, rtol=0)
    drawn = Augmenter(augmentation(hue=0.1), "classification", 8).draw(500, torch.Generator().manual_seed(0))
    assert -0.1 <= drawn.hue.min() < -0.09
    assert 0.09 < drawn.hue.max() <= 0.1
    red = torch.zeros(500, 3, 8, 8)
    red[:, 0] = 1.0
    assert torch.equal(drawn.images(red), turn_hue(red, drawn.hue))


def test_colour_noise_runs_along_the_principal_colours_of_the_training_images() -> None:
    spread = np.random.default_rng(0).normal(size=(200, 1, 6, 6)) * np.array([3.0, 2.0, 0.0]).reshape(1, 3, 1, 1)
    pixels = (128 + 10 * spread).clip(0, 255).astype(np.uint8)  # all colours on one line
    axes = principal_colours(pixels)
    variance = np.var(pixels[:, 0] / 255) + np.var(pixels[:, 1] / 255)
    strongest = axes[:, -1]
    assert strongest.norm() == pytest.approx(variance, rel=0.01)
    torch.testing.assert_close(
        strongest.abs() / strongest.norm(), torch.tensor([3.0, 2.0, 0.0]) / 13**0.5, atol=0.01, rtol=0
    )
    augmenter = Augmenter(augmentation(colour_noise=0.1), "classification", 6).for_images(pixels)
    drawn = augmenter.draw(3000, torch.Generator().manual_seed(0))
    shifts = (drawn.images(torch.full((3000, 3, 6, 6), 0.5)) - 0.5)[:, :, 0, 0]
    assert (shifts @ strongest / strongest.norm()).std() == pytest.approx(0.1 * variance, rel=0.05)
    grey = Augmenter(augmentation(colour_noise=0.1), "classification", 6).for_images(pixels[:, :1])
    assert grey.draw(4, torch.Generator().manual_seed(0)).images(torch.full((4, 1, 6, 6), 0.5)).unique().numel() == 4


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_the_size_is_drawn_for_the_batch_and_holes_keep_to_it() -> None:
    augmenter = Augmenter(augmentation(image_sizes=(8, 32), cutout=3), "classification", 16)
    drawn = [augmenter.draw(50, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert {each.side for each in drawn} == {8, 32}
    assert all(each.hole.max() < each.side for each in drawn)
    assert max(int(each.hole.max()) for each in drawn) == 30  # 15 of 16, scaled


def test_new_parts_leave_the_numbers_of_the_old_ones_as_they_were() -> None:
    drawn = Augmenter(
        augmentation(crop_padding=4, horizontal_flip=True, rotation_degrees=10), "classification", 32
    ).draw(3, torch.Generator().manual_seed(7))
    assert drawn.shift.tolist() == [[0, 4], [7, 2], [4, 6]]
    assert drawn.mirrored.tolist() == [True, False, True]
    assert drawn.hole.tolist() == [[10, 26], [8, 7], [6, 4]]
