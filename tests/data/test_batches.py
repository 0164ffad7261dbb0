from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from small_sets import augmentation, raw_classification, raw_detection, raw_images, raw_segmentation

from convatlas.core.errors import UserError
from convatlas.data.augmentation import Augmenter
from convatlas.data.batches import (
    Batch,
    EpochSampler,
    EvaluationBatches,
    StatelessLoader,
    TrainingBatches,
    permutation,
)
from convatlas.data.prepared import PreparedData, Split
from convatlas.data.raw import RawDataset

Preparer = Callable[..., PreparedData]

WILD = augmentation(crop_padding=2, horizontal_flip=True, cutout=3, rotation_degrees=20, scale=0.2, brightness=0.3)
FLIPS = augmentation(horizontal_flip=True, brightness=0.3)
NOTHING = augmentation()


def training(split: Split, parts: Any = WILD, size: int = 12, **other: Any) -> TrainingBatches:
    augmenter = Augmenter(parts, split.card.task, size)
    arguments: dict[str, Any] = {"image_size": size, "batch_size": 8, "augmenter": augmenter, "seed": 5}
    return TrainingBatches(split, **(arguments | other))


def first_split(split: Split, items: int) -> Split:
    """Shorten a split of classification to some items."""
    return Split(split.folder, split.name, split.card, images=split.images[:items], labels=split.labels[:items])


def flat(batch: Batch) -> list[torch.Tensor]:
    tensors = [value for key, value in sorted(batch.items()) if key != "targets"]
    return tensors + [target[key] for target in batch.get("targets", []) for key in ("boxes", "labels")]


def assert_same(ones: Iterable[Batch], others: Iterable[Batch]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for a, b in zip(flat(one), flat(other), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def interleaved(shares: list[Batch]) -> list[torch.Tensor]:
    """Put the shares of all processes together in the order of the whole batch."""
    count = sum(len(share["indices"]) for share in shares)
    world = len(shares)
    order = [(item % world, item // world) for item in range(count)]
    whole = [torch.stack([shares[r][key][i] for r, i in order]) for key in sorted(shares[0]) if key != "targets"]
    for rank, item in order if "targets" in shares[0] else []:
        whole += [shares[rank]["targets"][item][key] for key in ("boxes", "labels")]
    return whole


@pytest.fixture(params=["classification", "segmentation", "detection"])
def split(request: pytest.FixtureRequest, prepare_raw: Preparer) -> Split:
    raws: dict[str, Callable[[], RawDataset]] = {
        "classification": lambda: raw_classification(60),
        "segmentation": lambda: raw_segmentation(60),
        "detection": lambda: raw_detection(60),
    }
    return prepare_raw(raws[request.param]()).split("train")


def wild(split: Split) -> Any:
    return FLIPS if split.card.task == "detection" else WILD


# ---- what a batch holds ---------------------------------------------------------------------------------------------


def test_the_contract_of_each_task(split: Split) -> None:
    batch = training(split, wild(split))[0, 0]
    types = {key: (value.dtype, tuple(value.shape)) for key, value in batch.items() if key != "targets"}
    expected = {"images": (torch.float32, (8, 1, 12, 12)), "indices": (torch.int64, (8,))}
    if split.card.task == "classification":
        expected["labels"] = (torch.int64, (8,))
    if split.card.task == "segmentation":
        expected["masks"] = (torch.int64, (8, 12, 12))
        expected["edges"] = (torch.float32, (8, 1, 12, 12))
    assert types == expected
    if split.card.task == "detection":
        for index, target in zip(batch["indices"].tolist(), batch["targets"], strict=True):
            objects = int(split.box_offsets[index + 1] - split.box_offsets[index])
            assert (target["boxes"].dtype, tuple(target["boxes"].shape)) == (torch.float32, (objects, 4))
            assert (target["labels"].dtype, tuple(target["labels"].shape)) == (torch.int64, (objects,))


def test_pixels_are_normalised_with_the_card(prepare_raw: Preparer) -> None:
    prepared = prepare_raw(raw_classification(60, images=raw_images(60, channels=3)))
    split, card = prepared.split("train"), prepared.card
    batch = training(split, NOTHING, size=8)[0, 0]
    pixels = split.images[batch["indices"].numpy()] / np.float32(255)
    expected = (pixels - np.float32(card.mean).reshape(3, 1, 1)) / np.float32(card.std).reshape(3, 1, 1)
    np.testing.assert_allclose(batch["images"].numpy(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(batch["labels"], split.labels[batch["indices"].numpy()])


def test_a_channel_of_one_colour_becomes_zero(prepare_raw: Preparer) -> None:
    images = raw_images(60, channels=2)
    images[:, 1] = 40
    split = prepare_raw(raw_classification(60, images=images)).split("train")
    batch = training(split, NOTHING, size=8)[0, 0]
    assert batch["images"][:, 1].abs().max() < 1e-6


def test_detection_gets_pixels_as_they_are(prepare_raw: Preparer) -> None:
    split = prepare_raw(raw_detection(60)).split("train")
    batch = training(split, NOTHING, size=8)[0, 0]
    assert torch.equal(batch["images"] * 255, torch.from_numpy(split.images[batch["indices"].numpy()]).float())


def test_boxes_are_exact_after_resizing_and_flipping(prepare_raw: Preparer) -> None:
    split = prepare_raw(raw_detection(60)).split("train")
    plain, flipped = training(split, NOTHING, size=16), training(split, augmentation(horizontal_flip=True), size=16)
    mirrored = 0
    for epoch in range(4):
        before, after = plain[epoch, 0], flipped[epoch, 0]
        for item, index in enumerate(before["indices"].tolist()):
            stored = torch.from_numpy(split.boxes[slice(*split.box_offsets[index : index + 2])].copy())
            boxes = before["targets"][item]["boxes"]
            assert torch.equal(boxes, stored * 2)  # from 8 to 16 pixels
            if torch.equal(after["images"][item], before["images"][item]):
                assert torch.equal(after["targets"][item]["boxes"], boxes)
            else:
                assert torch.equal(after["images"][item], before["images"][item].flip(2))
                assert torch.equal(after["targets"][item]["boxes"][:, [0, 2]], 16 - boxes[:, [2, 0]])
                assert torch.equal(after["targets"][item]["boxes"][:, [1, 3]], boxes[:, [1, 3]])
                mirrored += 1
    assert 5 < mirrored < 27


def test_masks_are_enlarged_without_new_classes(prepare_raw: Preparer) -> None:
    split = prepare_raw(raw_segmentation(60)).split("train")
    batch = training(split, NOTHING, size=16)[0, 0]
    expected = split.masks[batch["indices"].numpy()].repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(batch["masks"], expected)
    wild_masks = training(split, WILD, size=12)[0, 0]["masks"]
    assert set(wild_masks.unique().tolist()) <= {0, 1, 2, 3}


def test_edges_move_with_their_masks_and_stay_zero_or_one(prepare_raw: Preparer) -> None:
    split = prepare_raw(raw_segmentation(60)).split("train")
    moved = training(split, augmentation(crop_padding=2, horizontal_flip=True), size=8)[0, 0]
    for masks, edges, index in zip(moved["masks"], moved["edges"][:, 0], moved["indices"].tolist(), strict=True):
        # the stored pair, found again under the same shift and mirroring
        stored = torch.stack([torch.from_numpy(a[index].astype(np.int64)) for a in (split.masks, split.edges)])
        padded = torch.nn.functional.pad(stored, (2, 2, 2, 2))
        windows = [padded[:, r : r + 8, c : c + 8] for r in range(5) for c in range(5)]
        pairs = [pair for window in windows for pair in (window, window.flip(2))]
        assert any(torch.equal(pair[0], masks) and torch.equal(pair[1], edges.long()) for pair in pairs)
    assert set(training(split, WILD)[0, 0]["edges"].unique().tolist()) == {0.0, 1.0}


def test_canny_s_channel_moves_with_the_image_and_keeps_its_values(prepare_raw: Preparer) -> None:
    """Neither brightness nor normalisation touches it; the image's channels are what they are without it."""
    split = prepare_raw(raw_segmentation(60)).split("train")
    plain, with_canny = training(split, WILD, size=8), training(split, WILD, size=8, canny=True)
    batch, other = with_canny[1, 2]["images"], plain[1, 2]["images"]
    flat_before_cutout = training(split, FLIPS, size=8, canny=True)[1, 2]
    assert batch.shape[1] == 2
    assert torch.equal(batch[:, :1], other)
    stored = torch.from_numpy(split.canny[flat_before_cutout["indices"].numpy()]).float()
    for edges, drawn in zip(stored, flat_before_cutout["images"][:, 1], strict=True):
        assert torch.equal(drawn, edges) or torch.equal(drawn, edges.flip(1))


def test_evaluation_tells_the_size_of_a_net_s_pixels(prepare_raw: Preparer) -> None:
    raw = raw_segmentation(60)
    raw.spacing = np.stack([np.linspace(1, 2, 60), np.full(60, 3.0)], axis=1).astype(np.float32)
    split = prepare_raw(raw).split("test")
    batch = EvaluationBatches(split, image_size=16, batch_size=4)[0]
    expected = torch.from_numpy(split.spacing[batch["indices"].numpy()]) / 2  # 8 pixels became 16
    torch.testing.assert_close(batch["spacing"], expected)
    assert "spacing" not in training(split)[0, 0]  # augmented images may be zoomed


def test_shrinking_averages(prepare_raw: Preparer) -> None:
    split = prepare_raw(raw_detection(60)).split("train")
    small = training(split, NOTHING, size=4)[0, 0]
    stored = split.images[small["indices"].numpy()] / 255
    # Interior of a triangle filter over two pixels' width: weights 1/8, 3/8, 3/8, 1/8 along each axis.
    weights = np.array([1, 3, 3, 1]) / 8
    expected = np.einsum("nij,i,j->n", stored[:, 0, 1:5, 1:5], weights, weights)
    np.testing.assert_allclose(small["images"][:, 0, 1, 1], expected, rtol=1e-5)


def test_the_same_image_is_changed_anew_in_every_place_of_a_batch(prepare_raw: Preparer) -> None:
    split = prepare_raw(raw_classification(60)).split("train")
    same = Split(split.folder, "train", split.card, images=np.repeat(split.images[:1], 36, 0), labels=split.labels)
    images = training(same, WILD, batch_size=36)[0, 0]["images"]
    assert len(torch.unique(images.flatten(1), dim=0)) == 36


# ---- order and independence -----------------------------------------------------------------------------------------


def test_an_epoch_is_the_permutation_of_seed_and_epoch(split: Split) -> None:
    batches = training(split, wild(split))
    assert len(batches) == len(split) // 8 == 4
    for epoch in (0, 7):
        seen = torch.cat([batches[epoch, batch]["indices"] for batch in range(4)])
        np.testing.assert_array_equal(seen, permutation(len(split), 5, epoch)[:32])
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_batch_does_not_depend_on_those_before(split: Split) -> None:
    late = [training(split, wild(split))[2, batch] for batch in (3, 1)]
    batches = training(split, wild(split))
    in_order = [batches[epoch, batch] for epoch in range(3) for batch in range(4)]
    assert_same(late, [in_order[11], in_order[9]])


def test_epochs_and_batches_draw_differently(prepare_raw: Preparer) -> None:
    split = prepare_raw(raw_classification(60)).split("train")
    same = Split(split.folder, "train", split.card, images=np.repeat(split.images[:1], 36, 0), labels=split.labels)
    batches = training(same, WILD)
    variants = torch.cat([batches[e, b]["images"].flatten(1) for e, b in ((0, 0), (0, 1), (1, 0), (1, 1))])
    assert len(torch.unique(variants, dim=0)) == 32


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(split: Split, world_size: int) -> None:
    alone = training(split, wild(split))
    several = [training(split, wild(split), rank=rank, world_size=world_size) for rank in range(world_size)]
    for position in ((0, 0), (3, 2)):
        whole = interleaved([alone[position]])
        for ours, theirs in zip(interleaved([share[position] for share in several]), whole, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("images", "world_size", "expected"), [(7, 1, 7), (7, 2, 6), (7, 4, 4), (8, 4, 8)])
def test_a_split_smaller_than_a_batch_is_one_even_batch(
    prepare_raw: Preparer, images: int, world_size: int, expected: int
) -> None:
    split = first_split(prepare_raw(raw_classification(60)).split("train"), images)
    shares = [training(split, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {1}
    assert [len(share[0, 0]["indices"]) for share in shares] == [expected // world_size] * world_size


def test_batches_that_cannot_be_shared_are_refused(prepare_raw: Preparer) -> None:
    split = prepare_raw(raw_classification(60)).split("train")
    with pytest.raises(ValueError, match=r"^recipe\.batch_size=8 .* must be a multiple of 3"):
        training(split, world_size=3)
    with pytest.raises(UserError, match=r"trainer\.devices: 8 processes are more than the 3 images in the train split"):
        training(first_split(split, 3), world_size=8)


# ---- loading --------------------------------------------------------------------------------------------------------


def loader(split: Split, workers: int, start_batch: int = 0) -> StatelessLoader:
    batches = training(split, wild(split))
    sampler = EpochSampler(len(batches))
    sampler.start_batch = start_batch
    return StatelessLoader(batches, sampler, workers)


def epochs(load: StatelessLoader, first: int, last: int) -> list[Batch]:
    found = []
    for epoch in range(first, last + 1):
        iterator = iter(load)  # as Lightning does: first the iterator, then the epoch
        load.sampler.set_epoch(epoch)
        found += list(iterator)
    return found


def test_workers_do_not_change_a_bit(split: Split) -> None:
    assert_same(epochs(loader(split, 0), 0, 2), epochs(loader(split, 2), 0, 2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start_batch", [1, 3])
def test_resuming_gives_exactly_the_remaining_batches(split: Split, workers: int, start_batch: int) -> None:
    everything = epochs(loader(split, 0), 0, 2)
    resumed = loader(split, workers, start_batch)
    assert len(resumed) == 4
    assert_same(epochs(resumed, 1, 2), everything[4 + start_batch :])


@pytest.mark.parametrize("start_batch", [4, 9])
def test_resuming_after_a_complete_epoch_begins_the_next(split: Split, start_batch: int) -> None:
    assert_same(epochs(loader(split, 0, start_batch), 2, 2), epochs(loader(split, 0), 2, 2))


def test_loading_leaves_the_global_random_numbers_alone(split: Split) -> None:
    before = torch.get_rng_state()
    epochs(loader(split, 0), 0, 1)
    assert torch.equal(torch.get_rng_state(), before)


# ---- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "world_size"), [(1, 1), (36, 1), (2, 2), (7, 2), (17, 3), (5, 4), (17, 4), (36, 7), (8, 7)]
)
@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_evaluation_sees_every_image_once(prepare_raw: Preparer, images: int, world_size: int, batch_size: int) -> None:
    split = first_split(prepare_raw(raw_classification(60)).split("train"), images)
    shares = [
        EvaluationBatches(split, image_size=8, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    sizes = [[len(share[batch]["indices"]) for batch in range(len(share))] for share in shares]
    assert min(map(min, sizes)) >= 1
    assert max(map(max, sizes)) <= max(2, batch_size // world_size)
    seen = [index for share in shares for batch in range(len(share)) for index in share[batch]["indices"].tolist()]
    assert seen == list(range(images))


def test_evaluation_does_not_augment(split: Split) -> None:
    batches = EvaluationBatches(split, image_size=8, batch_size=len(split))
    images = torch.from_numpy(split.images / np.float32(255))
    if split.card.task != "detection":
        images = (images - torch.tensor(split.card.mean)) / torch.tensor(split.card.std)
    torch.testing.assert_close(batches[0]["images"], images)
    assert_same([batches[0]], [batches[0]])


def test_a_sampler_counts_a_full_epoch_and_starts_late_once() -> None:
    sampler = EpochSampler(3)
    sampler.start_batch = 2
    positions = []
    for epoch in (4, 5):
        sampler.set_epoch(epoch)
        positions.append(list(sampler))
        assert len(sampler) == 3
    assert positions == [[(4, 2)], [(5, 0), (5, 1), (5, 2)]]
    assert all(a < b for a, b in pairwise(positions[1]))
