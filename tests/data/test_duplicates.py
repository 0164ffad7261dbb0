"""Near copies are found without comparing all with all; what only resembles is not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from picture_files import files_config, photograph
from PIL import Image
from small_sets import raw_classification

from convatlas.data.duplicates import near_copies, thumbnails
from convatlas.data.prepare_dataset import prepare_raw
from convatlas.data.verification import verify


def photographs(count: int, side: int = 48) -> np.ndarray:
    return np.stack([photograph(seed, side, side).transpose(2, 0, 1) for seed in range(count)])


def saved_again(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def brighter(image: np.ndarray) -> np.ndarray:
    return (image * 0.7 + 60).astype(np.uint8)


def smaller(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image.transpose(1, 2, 0))
    return np.asarray(picture.resize((24, 24)).resize((48, 48), Image.Resampling.NEAREST)).transpose(2, 0, 1)


@pytest.mark.parametrize(
    "change", [lambda i: saved_again(i, 60), brighter, smaller], ids=["jpeg", "brighter", "smaller"]
)
def test_a_changed_copy_is_found_with_its_original(change) -> None:
    images = photographs(60)
    images[50] = change(images[7])
    found = near_copies(thumbnails(images), np.arange(40, 60), np.arange(40))
    assert list(zip(found.items.tolist(), found.others.tolist(), strict=True)) == [(50, 7)]
    assert found.similarity[0] > 0.98


def test_an_image_is_no_copy_of_itself_and_pairs_are_seen_from_both_sides() -> None:
    images = photographs(30)
    images[20] = saved_again(images[3], 70)
    everything = np.arange(30)
    found = near_copies(thumbnails(images), everything, everything)
    assert list(zip(found.items.tolist(), found.others.tolist(), strict=True)) == [(3, 20), (20, 3)]


def test_the_most_alike_of_many_copies_is_taken() -> None:
    images = photographs(30)
    for place, quality in ((10, 20), (11, 50), (12, 90)):
        images[place] = saved_again(images[3], quality)
    found = near_copies(thumbnails(images), np.array([3]), np.arange(4, 30))
    assert found.others.tolist() == [12]


def test_images_without_contrast_are_not_compared() -> None:
    flat = np.full((10, 1, 32, 32), 100, dtype=np.uint8)
    flat[:, 0, 3, 3] = np.arange(10)
    everything = np.arange(10)
    assert len(near_copies(thumbnails(flat), everything, everything)) == 0


def test_thumbnails_are_averages_of_areas() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 48), dtype=np.uint8)
    wanted = image.mean(axis=1).reshape(16, 2, 16, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(thumbnails(image)[0].reshape(16, 16), wanted, atol=0.1)
    uneven = thumbnails(np.random.default_rng(1).integers(0, 256, (2, 1, 21, 37), dtype=np.uint8))
    assert uneven.shape == (2, 256)
    constant = thumbnails(np.full((1, 1, 5, 7), 99, dtype=np.uint8))
    np.testing.assert_allclose(constant, 99, atol=0.1)


def test_the_card_names_near_copies_across_the_official_border(tmp_path) -> None:
    images = photographs(40)
    images[35] = saved_again(images[4], 80)
    raw = raw_classification(40, images=images, official_split=np.array(["train"] * 30 + ["test"] * 10))
    raw.names = [f"photograph {number}" for number in range(40)]
    split = {"validation": 0.2, "test": 0.0, "seed": 0}
    card = prepare_raw(files_config(tmp_path, storage="arrays", split=split), raw)
    assert card.near_duplicates == 2
    assert [(pair.item, pair.split, pair.other) for pair in card.near_across] == [
        ("photograph 35", "test", "photograph 4")
    ]
    assert card.near_across[0].other_split in {"train", "validation"}
    assert card.near_across[0].position == 5
    assert card.rejected == ()


def test_exact_copies_are_no_near_copies() -> None:
    images = photographs(20)
    images[9] = images[2]
    findings = verify(raw_classification(20, images=images), "pixels")
    assert findings.duplicates == 1
    assert findings.copies[9] == 2
