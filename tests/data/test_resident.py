"""Batches made where the pixels lie: in a device's memory as from the mapped files, and without a way back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_sets import augmentation, data_config, raw_classification, raw_detection, raw_images, raw_segmentation
from test_batches import assert_same
from test_data_module import recipe

from convatlas.data import resident
from convatlas.data.augmentation import Augmenter
from convatlas.data.batches import EvaluationBatches, TrainingBatches
from convatlas.data.module import DataModule
from convatlas.data.prepared import PreparedData
from convatlas.data.resident import MappedArrays, ResidentArrays, arrays_for, pixel_bytes

Preparer = Callable[..., PreparedData]

CPU, META = torch.device("cpu"), torch.device("meta")
MOVED = {"horizontal_flip": True, "random_area": (0.3, 1.0), "zoom_out": 2.0}
COLOURED = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "colour_noise": 0.1}
PLACED = {"crop_padding": 2, "cutout": 3, "rotation_degrees": 20, "scale": 0.2, "image_sizes": (8, 12)}
EVERYTHING: dict[str, dict[str, Any]] = {
    "classification": {**MOVED, **COLOURED, **PLACED, "rand_augment": 3, "mixup": 0.4, "cutmix": 1.0},
    "segmentation": {**MOVED, **COLOURED, **PLACED},
    "detection": {**MOVED, **COLOURED},
}


@pytest.fixture(params=EVERYTHING)
def prepared(request: pytest.FixtureRequest, prepare_raw: Preparer) -> PreparedData:
    colourful = {"images": raw_images(60, channels=3)}
    kinds = {"classification": raw_classification, "segmentation": raw_segmentation, "detection": raw_detection}
    raw = kinds[request.param](60)
    raw.images = colourful["images"]
    return prepare_raw(raw)


def training(prepared: PreparedData, arrays: resident.PixelArrays) -> TrainingBatches:
    """Make batches with everything switched on that the task allows."""
    task = prepared.card.task
    augmenter = Augmenter(augmentation(**EVERYTHING[task]), task, 12)
    canny = task == "segmentation"
    split = prepared.split("train")
    return TrainingBatches(split, image_size=12, batch_size=16, augmenter=augmenter, seed=5, canny=canny, arrays=arrays)


def test_the_processor_s_memory_gives_the_bits_of_the_files(prepared: PreparedData) -> None:
    held = ResidentArrays(CPU)
    ours, expected = training(prepared, held), training(prepared, MappedArrays())
    positions = [(epoch, batch) for epoch in range(3) for batch in range(2)]
    assert_same([ours[position] for position in positions], [expected[position] for position in positions])
    test = prepared.split("test")
    evaluated, mapped = (EvaluationBatches(test, image_size=12, batch_size=5, arrays=a) for a in (held, None))
    assert_same([evaluated[1]], [mapped[1]])


def test_pixels_never_leave_their_device(prepared: PreparedData) -> None:
    """On torch's "meta" device nothing has a value: what looked at pixels there, or mixed devices, would raise.

    Order, sizes, partners and boxes, which are no pixels, are those of the processor.
    """
    ours, expected = training(prepared, ResidentArrays(META)), training(prepared, MappedArrays())
    for position in ((0, 0), (1, 1)):
        batch, reference = ours[position], expected[position]
        assert batch.keys() == reference.keys()
        assert batch["images"].shape == reference["images"].shape
        for key in batch.keys() - {"targets"}:
            is_pixels = key in {"images", "masks", "edges", "label_shares"}
            assert batch[key].device.type == ("meta" if is_pixels else "cpu")
            assert is_pixels or torch.equal(batch[key], reference[key])
        for one, other in zip(batch.get("targets", []), reference.get("targets", []), strict=True):
            assert torch.equal(one["boxes"], other["boxes"])


@pytest.mark.gpu
def test_a_gpu_makes_the_batches_of_the_processor(prepared: PreparedData) -> None:
    """But for the last digits of what is resampled: the numbers that were drawn are the same."""
    ours, expected = training(prepared, ResidentArrays(torch.device("cuda"))), training(prepared, MappedArrays())
    for position in ((0, 0), (1, 1)):
        batch, reference = ours[position], expected[position]
        close = torch.isclose(batch["images"].cpu(), reference["images"], atol=1e-3)
        assert close.float().mean() > 0.99  # a pixel between two steps of solarize or posterize may take the other


@pytest.mark.parametrize(
    ("device", "option", "expected"),
    [
        ("cpu", "auto", MappedArrays),
        ("cuda:1", "auto", ResidentArrays),
        ("cpu", True, ResidentArrays),
        ("cuda:1", False, MappedArrays),
    ],
)
def test_where_batches_are_made(prepare_raw: Preparer, device: str, option: resident.Resident, expected: type) -> None:
    arrays = arrays_for(prepare_raw(raw_segmentation(60)), torch.device(device), option)
    assert type(arrays) is expected
    assert arrays.device == torch.device(device if expected is ResidentArrays else "cpu")


def test_auto_leaves_large_data_where_they_are(prepare_raw: Preparer, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_raw(raw_segmentation(60))
    assert pixel_bytes(prepared) == 60 * 8 * 8 * 4  # images of one channel, masks, edges, Canny's edges
    monkeypatch.setattr(resident, "MOST_BYTES", 60 * 8 * 8 * 4 - 1)
    assert type(arrays_for(prepared, torch.device("cuda"), "auto")) is MappedArrays
    assert type(arrays_for(prepared, torch.device("cuda"), True)) is ResidentArrays


def test_a_module_copies_once_and_starts_no_workers(
    prepare_raw: Preparer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_classification(60)
    prepared = prepare_raw(raw)
    copied: list[tuple[int, ...]] = []
    copy = resident.copied_to
    monkeypatch.setattr(resident, "copied_to", lambda array, device: copied.append(array.shape) or copy(array, device))
    module = DataModule(
        prepared, data_config(raw, tmp_path), recipe(), workers=2, limit_batches=None, seed=0, resident=True
    )
    module.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=CPU))  # type: ignore[assignment]
    assert module.batches_per_epoch == 4
    assert copied == []  # counting batches needs no pixels
    for _ in range(2):
        for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
            assert loader.num_workers == 0
            assert not loader.pin_memory
            assert len(list(loader)) == len(loader)
    counts = [prepared.card.counts[split].images for split in ("train", "validation", "test")]
    assert copied == [(count, 1, 8, 8) for count in counts]
