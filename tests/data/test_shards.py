"""Encoded images in shards: the same batches as from arrays, any image at once, and boxes that follow their images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import encoded, files_config, files_in, photograph, raw_files
from small_sets import augmentation, raw_classification

from convatlas.data import shards
from convatlas.data.augmentation import Augmenter
from convatlas.data.batches import EvaluationBatches, TrainingBatches
from convatlas.data.decoding import decode
from convatlas.data.prepare_dataset import prepare_raw
from convatlas.data.prepared import PreparedData
from convatlas.data.reader import Reader
from convatlas.data.shards import ShardedImages, write_shards
from convatlas.data.squares import fit


def test_any_image_is_found_in_any_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    written = [(bytes([number]) * (10 + number), number, 2 * number) for number in range(40)]
    paths = write_shards(tmp_path, "train", iter(written))
    assert len(paths) > 5
    assert [path.name for path in paths[:2]] == ["train_images_00000.arrow", "train_images_00001.arrow"]
    images = ShardedImages(paths)
    assert len(images) == 40
    for number in (39, 0, 17, *range(40)):
        assert images.read(number).to_pybytes() == written[number][0]
    assert images.sizes.tolist() == [[number, 2 * number] for number in range(40)]


def test_plain_files_are_stored_to_the_byte_and_others_without_loss(tmp_path: Path) -> None:
    contents = {f"{n}.jpg": encoded(photograph(n), "JPEG") for n in range(20)}
    contents |= {f"{n}.bmp": encoded(photograph(n), "BMP") for n in range(20, 40)}
    config = files_config(tmp_path)
    prepare_raw(config, raw_files(tmp_path / "raw", contents))
    stored = [
        split.images.read(item).to_pybytes()
        for split in PreparedData.open(config.prepared).splits.values()
        for item in range(len(split))
    ]
    assert {content for name, content in contents.items() if name.endswith("jpg")} < set(stored)
    pixels = {decode(content, 3).pixels.tobytes() for content in stored}
    assert pixels == {decode(content, 3).pixels.tobytes() for content in contents.values()}


def test_larger_images_are_stored_smaller(tmp_path: Path) -> None:
    contents = {f"{n}.jpg": encoded(photograph(n, *((40, 50) if n % 2 else (20, 26))), "JPEG") for n in range(30)}
    config = files_config(tmp_path, stored_side=24)
    card = prepare_raw(config, raw_files(tmp_path / "raw", contents))
    sizes = {
        tuple(size)
        for split in PreparedData.open(config.prepared).splits.values()
        for size in split.images.sizes.tolist()
    }
    assert sizes == {(24, 30), (20, 26)}
    assert card.converted == {"brought to a shorter side of 24 pixels": 15}
    assert card.original_sizes.largest == (40, 50)
    bins = card.original_sizes.shorter_sides
    assert (bins[0], bins[-1]) == ((20, 21, 15), (39, 41, 15))
    assert sum(images for *_, images in bins) == 30


def test_batches_from_shards_and_from_arrays_agree(tmp_path: Path) -> None:
    raw = raw_files(tmp_path / "raw")
    batches = []
    for number, changes in enumerate(({"storage": "shards"}, {"storage": "arrays", "stored_side": 16})):
        config = files_config(tmp_path / str(number), **changes)
        prepare_raw(config, raw)
        prepared = PreparedData.open_for(config)
        assert prepared.card.fitted == "centre"
        batches.append(EvaluationBatches(prepared.split("test"), image_size=16, batch_size=4)[0])
        mean, std = (torch.tensor(v)[:, None, None] for v in (prepared.card.mean, prepared.card.std))
        batches[-1]["images"] = batches[-1]["images"] * std + mean
    assert torch.equal(batches[0]["labels"], batches[1]["labels"])
    assert torch.equal(batches[0]["indices"], batches[1]["indices"])
    # the two decoders' resampling may round apart
    torch.testing.assert_close(batches[0]["images"], batches[1]["images"], rtol=0, atol=2.5 / 255)


def test_the_batches_are_normalised(tmp_path: Path) -> None:
    config = files_config(tmp_path)
    prepare_raw(config, raw_files(tmp_path / "raw"))
    split = PreparedData.open(config.prepared).split("train")
    images = Reader(split, 16, canny=False).read(np.arange(len(split)))["images"]
    assert images.mean((0, 2, 3)).abs().max() < 0.3
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.3


def test_random_crops_are_taken_from_all_pixels_of_the_image(tmp_path: Path) -> None:
    """A fine pattern survives a crop of a quarter only if it is cut before the image is made small."""
    pattern = (np.indices((64, 64)).sum(0) // 2 % 2 * 255).astype(np.uint8)
    contents = {f"{n}.png": encoded(np.roll(pattern, n, axis=1) ^ np.uint8(n)) for n in range(30)}
    config = files_config(tmp_path, in_channels=1, image_size=32)
    prepare_raw(config, raw_files(tmp_path / "raw", contents))
    split = PreparedData.open(config.prepared).split("train")
    augmenter = Augmenter(augmentation(random_area=(0.25, 0.25)), "classification", 32, channels=1)
    batches = TrainingBatches(split, image_size=32, batch_size=8, augmenter=augmenter, seed=0)
    plain = EvaluationBatches(split, image_size=32, batch_size=8)
    assert batches[0, 0]["images"].std() > 1.5 * plain[0]["images"].std()


def test_an_epoch_resumed_in_mid_way_has_the_same_bits(tmp_path: Path) -> None:
    config = files_config(tmp_path)
    prepare_raw(config, raw_files(tmp_path / "raw"))
    split = PreparedData.open(config.prepared).split("train")
    augmenter = Augmenter(augmentation(random_area=(0.1, 1.0), horizontal_flip=True), "classification", 16)

    def batches() -> TrainingBatches:
        return TrainingBatches(split, image_size=16, batch_size=6, augmenter=augmenter, seed=3)

    first = batches()
    all_in_order = [first[1, number]["images"] for number in range(len(first))]
    assert torch.equal(batches()[1, 2]["images"], all_in_order[2])


def test_boxes_follow_their_images(tmp_path: Path) -> None:
    """A bright rectangle is where its box says, however the image was stored and stretched."""
    contents, boxes = {}, []
    rng = np.random.default_rng(0)
    for number in range(24):
        height, width = int(rng.integers(40, 80)), int(rng.integers(40, 80))
        x1, y1 = int(rng.integers(2, width // 2)), int(rng.integers(2, height // 2))
        x2, y2 = x1 + width // 3, y1 + height // 3
        pixels = rng.integers(0, 60, (height, width), dtype=np.uint8)
        pixels[y1:y2, x1:x2] = 255
        contents[f"{number}.png"] = encoded(pixels)
        boxes.append(np.array([[x1, y1, x2, y2]], dtype=np.float32))
    raw = raw_classification(
        24,
        images=files_in(tmp_path / "raw", contents),
        classes=2,
        labels=None,
        boxes=boxes,
        box_labels=[np.ones(1, dtype=np.int64)] * 24,
    )
    stores = ({"storage": "shards"}, {"storage": "shards", "stored_side": 36}, {"storage": "arrays", "stored_side": 40})
    for number, changes in enumerate(stores):
        config = files_config(
            tmp_path / str(number), task="detection", in_channels=1, image_size=48, num_classes=2, **changes
        )
        prepare_raw(config, raw)
        batch = EvaluationBatches(PreparedData.open(config.prepared).split("train"), image_size=48, batch_size=30)[0]
        for image, target in zip(batch["images"], batch["targets"], strict=True):
            rows, columns = torch.where(image[0] > 0.6)
            found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            torch.testing.assert_close(target["boxes"][0], found, rtol=0, atol=1.6)


def test_a_sharded_split_travels_without_its_images(tmp_path: Path) -> None:
    config = files_config(tmp_path)
    prepare_raw(config, raw_files(tmp_path / "raw"))
    split = PreparedData.open(config.prepared).split("train")
    sent = pickle.dumps(split)
    assert len(sent) < 10_000
    assert pickle.loads(sent).images.read(3).to_pybytes() == split.images.read(3).to_pybytes()


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    raw = raw_files(tmp_path / "raw")
    cards = [prepare_raw(files_config(tmp_path / place, stored_side=22), raw) for place in ("one", "other")]
    assert cards[0].to_json() == cards[1].to_json()


def test_arrays_of_files_hold_the_fitted_squares(tmp_path: Path) -> None:
    raw = raw_files(tmp_path / "raw")
    config = files_config(tmp_path, storage="arrays", stored_side=12)
    card = prepare_raw(config, raw)
    assert card.image_shape == (3, 12, 12)
    wanted = {fit(decode(raw.images.read(item), 3).pixels, 12, "centre").tobytes() for item in range(len(raw))}
    found = {image.tobytes() for split in PreparedData.open(config.prepared).splits.values() for image in split.images}
    assert found == wanted
