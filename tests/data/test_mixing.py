"""Mixup, CutMix and RandAugment: what they do to images, to labels, and to the share of each process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from small_sets import augmentation, raw_classification, raw_detection

from convatlas.data.augmentation import Augmenter
from convatlas.data.augmentation.mixing import beta, own_shares
from convatlas.data.augmentation.rand_augment import MOST_OPERATIONS, OPERATIONS, operations, rand_augment
from convatlas.data.batches import EvaluationBatches, TrainingBatches
from convatlas.data.prepared import PreparedData
from convatlas.tasks.losses import CrossEntropy

Preparer = Callable[..., PreparedData]


def batches(split: Any, parts: dict[str, Any], **other: Any) -> TrainingBatches:
    augmenter = Augmenter(augmentation(**parts), split.card.task, 12)
    arguments: dict[str, Any] = {"image_size": 12, "batch_size": 8, "augmenter": augmenter, "seed": 5}
    return TrainingBatches(split, **(arguments | other))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float) -> None:
    drawn = beta(torch.rand(4000, generator=torch.Generator().manual_seed(0)), alpha)
    assert stats.kstest(drawn.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_a_rectangle_has_the_drawn_area_and_a_clipped_one_counts_as_what_is_left() -> None:
    shares, cuts = torch.tensor([0.75, 0.75, 0.75]), torch.tensor([True, True, False])
    pixels, labels = own_shares(shares, torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.5, 0.5]]), cuts, 8)
    assert labels.tolist() == [0.75, 1 - 4 / 64, 0.75]
    assert pixels[0, 0, 2:6, 2:6].sum() == 0
    assert pixels[1, 0, :2, :2].sum() == 0
    assert [int((each == 0).sum()) for each in pixels] == [16, 4, 0]
    assert (pixels[2] == 0.75).all()


@pytest.mark.parametrize("parts", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_batches_are_the_images_and_their_partners_with_both_labels(
    prepare_raw: Preparer, parts: dict[str, Any]
) -> None:
    split = prepare_raw(raw_classification(60)).split("train")
    plain, mixed = (batches(split, {**more, "crop_padding": 2})[1, 2] for more in ({}, parts))
    drawn = batches(split, {**parts, "crop_padding": 2}).augmenter.draw(8, _generator_of(5, 1, 2))
    partner = drawn.partner
    assert torch.equal(mixed["labels"], plain["labels"])
    assert torch.equal(mixed["indices"], plain["indices"])
    assert torch.equal(mixed["partner_labels"], plain["labels"][partner])
    pixels, shares = drawn.mixed(torch.ones(8, 1, 12, 12), torch.zeros(8, 1, 12, 12))
    assert torch.equal(mixed["label_shares"], shares)
    torch.testing.assert_close(pixels.mean((1, 2, 3)), shares)
    torch.testing.assert_close(mixed["images"], pixels * plain["images"] + (1 - pixels) * plain["images"][partner])
    assert drawn.cut.unique().tolist() == ([False, True] if len(parts) == 2 else ["cutmix" in parts])


def _generator_of(seed: int, epoch: int, batch: int) -> torch.Generator:
    from convatlas.data.batches import _generator

    return _generator(seed, epoch, batch)


@pytest.mark.parametrize("parts", [{"mixup": 0.4, "cutmix": 1.0}, {"rand_augment": 2}, {"colour_noise": 0.1}])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_shares_of_all_processes_make_the_whole_batch(
    prepare_raw: Preparer, parts: dict[str, Any], world_size: int
) -> None:
    split = prepare_raw(raw_classification(60)).split("train")
    whole = batches(split, parts)[3, 1]
    for rank in range(world_size):
        share = batches(split, parts, rank=rank, world_size=world_size)[3, 1]
        assert share.keys() == whole.keys()
        for key, values in share.items():
            assert torch.equal(values, whole[key][rank::world_size]), key


@pytest.mark.parametrize("world_size", [1, 2])
def test_windows_and_sizes_of_detection_do_not_depend_on_the_processes(prepare_raw: Preparer, world_size: int) -> None:
    split = prepare_raw(raw_detection(60)).split("train")
    parts = {"horizontal_flip": True, "random_area": (0.3, 1.0), "zoom_out": 2.0, "image_sizes": (8, 12, 16)}
    sides = set()
    for batch in range(4):
        whole = batches(split, parts)[0, batch]
        sides.add(whole["images"].shape[-1])
        for rank in range(world_size):
            share = batches(split, parts, rank=rank, world_size=world_size)[0, batch]
            assert torch.equal(share["images"], whole["images"][rank::world_size])
            for one, other in zip(share["targets"], whole["targets"][rank::world_size], strict=True):
                assert torch.equal(one["boxes"], other["boxes"])
                assert torch.equal(one["labels"], other["labels"])
        for target in whole["targets"]:
            assert len(target["boxes"]) == len(target["labels"])
            assert ((target["boxes"] >= 0) & (target["boxes"] <= whole["images"].shape[-1])).all()
            assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
    assert len(sides) >= 2


def test_evaluation_mixes_nothing(prepare_raw: Preparer) -> None:
    split = prepare_raw(raw_classification(60)).split("validation")
    assert set(EvaluationBatches(split, image_size=8, batch_size=8)[0]) == {"images", "indices", "labels"}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_images_is_the_cross_entropy_with_the_soft_label(smoothing: float) -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels, partners = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 1, 3, 0, 2])
    shares = torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0])
    soft = shares[:, None] * F.one_hot(labels, 4) + (1 - shares[:, None]) * F.one_hot(partners, 4)
    expected = F.cross_entropy(logits, soft, label_smoothing=smoothing)
    torch.testing.assert_close(CrossEntropy(smoothing).mixed(logits, labels, partners, shares), expected)


# ---- RandAugment ----------------------------------------------------------------------------------------------------


def test_randaugment_has_the_papers_fourteen_operations() -> None:
    assert len(operations()) == OPERATIONS == 14


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_gets_its_own_operations_one_after_the_other(channels: int) -> None:
    images = torch.rand(6, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    names = list(operations())
    drawn = torch.tensor([[names.index(a), names.index(b)] for a, b in zip(names[:6], names[8:], strict=True)])
    downwards = torch.tensor([[False, True]]).expand(6, 2)
    changed = rand_augment(images, drawn, downwards, 15)
    for image, result, (first, second) in zip(images, changed, drawn.tolist(), strict=True):
        alone = list(operations().values())[first](image[None], 0.5)
        torch.testing.assert_close(result, list(operations().values())[second](alone, -0.5)[0])
    assert (changed >= 0).all()
    assert (changed <= 1).all()


def test_the_strongest_operations_are_torchvisions() -> None:
    from torchvision.transforms import RandAugment
    from torchvision.transforms.functional import adjust_sharpness

    ranges = RandAugment()._augmentation_space(31, (331, 331))
    image = torch.zeros(1, 1, 331, 331)
    image[..., 100:231, 100:231] = 1
    known = operations()
    moved = known["translate_x"](image, 1.0)
    assert int(torch.nonzero(moved[0, 0].amax(0))[0]) == 100 + round(float(ranges["TranslateX"][0][-1]))
    sheared = known["shear_x"](image, 1.0)[0, 0]
    starts = [int(torch.nonzero(sheared[row] > 0.5)[0]) for row in (110, 210)]
    assert abs(abs(starts[0] - starts[1]) / 100 - float(ranges["ShearX"][0][-1])) < 0.02
    grey = torch.full((1, 1, 4, 4), 0.5)
    assert known["brightness"](grey, -1.0).unique().item() == pytest.approx(
        0.5 * (1 - float(ranges["Brightness"][0][-1]))
    )
    levels = known["posterize"](torch.linspace(0, 1, 256).view(1, 1, 16, 16), 1.0).unique()
    assert len(levels) == 2 ** int(ranges["Posterize"][0][-1])
    assert torch.equal(known["solarize"](grey, 0.0), grey)
    noise = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    for strength in (-1.0, 1.0):
        expected = adjust_sharpness(noise, 1 + strength * float(ranges["Sharpness"][0][-1]))
        torch.testing.assert_close(known["sharpness"](noise, strength), expected)


def test_without_strength_only_three_operations_change_anything() -> None:
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.8
    changing = {
        name
        for name, operation in operations().items()
        if not torch.allclose(operation(images, 0.0), images, atol=2e-2)
    }
    assert changing == {"autocontrast", "equalize"}


def test_the_drawn_operations_are_spread_evenly() -> None:
    drawn = Augmenter(augmentation(rand_augment=2), "classification", 8).draw(3000, torch.Generator().manual_seed(0))
    counts = np.bincount(drawn.operations.flatten().numpy(), minlength=OPERATIONS)
    assert drawn.operations.shape == (3000, MOST_OPERATIONS)
    assert stats.chisquare(counts).pvalue > 0.01
    assert 0.48 < drawn.downwards.float().mean() < 0.52
