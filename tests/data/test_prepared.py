from __future__ import annotations

import errno
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_sets import SOURCE, data_config, raw_classification, raw_detection, raw_segmentation

from convatlas.core.config import DataConfig
from convatlas.core.errors import UserError
from convatlas.data import writing
from convatlas.data.card import fingerprint
from convatlas.data.edges import canny_edges, edge_targets
from convatlas.data.prepare_dataset import channel_statistics, prepare
from convatlas.data.prepared import PreparedData, hash_file
from convatlas.data.raw import RawDataset

Preparer = Callable[..., PreparedData]


def load(root: Path, count: int = 60) -> RawDataset:
    """Be a source, for `prepare`."""
    return raw_classification(count)


def config_of_source(folder: Path, **other: Any) -> DataConfig:
    return data_config(raw_classification(), folder, **({"source": {"_target_": f"{__name__}.load"}} | other))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# ---- writing --------------------------------------------------------------------------------------------------------


def test_the_digits_of_the_repository(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "conf" / "data" / "digits.yaml"
    values = yaml.safe_load(path.read_text()) | {"root": tmp_path / "raw", "prepared": tmp_path / "digits"}
    card = prepare(DataConfig.model_validate(values))
    assert [card.counts[split].images for split in ("train", "validation", "test")] == [1222, 216, 359]
    assert card.rejected == ()
    assert card.fingerprint == "b06170b6d6d3e262b93b6bac476cfe0824b85c06efd87d84a720007c0b447fb3"
    assert not (tmp_path / "raw").exists()


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for place in ("one", "two"):
        prepare(config_of_source(tmp_path / place))
    assert contents(tmp_path / "one/prepared/pixels") == contents(tmp_path / "two/prepared/pixels")


def test_the_card_tells_what_is_in_the_files(tmp_path: Path) -> None:
    config = config_of_source(tmp_path, source={"_target_": f"{__name__}.load", "count": 90})
    card = prepare(config)
    stored = json.loads((config.prepared / "dataset.json").read_text())
    assert stored["source"] == {"_target_": f"{__name__}.load", "count": 90}
    assert stored["counts"]["train"] == {
        "images": 54,
        "groups": None,
        "classes": {"class 0": 18, "class 1": 18, "class 2": 18},
    }
    assert set(card.files) == {path.name for path in config.prepared.iterdir()} - {"dataset.json"}
    assert all(hash_file(config.prepared / name) == digest for name, digest in card.files.items())
    assert card.fingerprint == fingerprint(card.files)
    images = np.load(config.prepared / "train_images.npy") / 255
    np.testing.assert_allclose(card.mean, images.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(card.std, images.std((0, 2, 3)), rtol=1e-12)


def test_channel_statistics_are_those_of_each_channel() -> None:
    images = np.zeros((2, 2, 1, 2), dtype=np.uint8)
    images[:, 1] = [[[0, 255]], [[255, 0]]]
    mean, std = channel_statistics(images)
    assert mean == (0.0, 0.5)
    assert std == (0.0, 0.5)


def test_detection_comes_back_box_by_box(prepare_raw: Preparer) -> None:
    raw = raw_detection(30)
    prepared = prepare_raw(raw)
    number = {image.tobytes(): item for item, image in enumerate(raw.images)}
    found = 0
    for name in ("train", "validation", "test"):
        split = prepared.split(name)
        for position in range(len(split)):
            item = number[split.images[position].tobytes()]
            span = slice(*split.box_offsets[position : position + 2])
            np.testing.assert_array_equal(split.boxes[span], raw.boxes[item])
            np.testing.assert_array_equal(split.box_labels[span], raw.box_labels[item])
            found += len(raw.boxes[item])
    assert found == sum(map(len, raw.boxes))


def test_masks_and_groups_come_back(prepare_raw: Preparer) -> None:
    raw = raw_segmentation(30)
    raw.groups = np.arange(30, dtype=np.int64) // 3
    prepared = prepare_raw(raw)
    number = {image.tobytes(): item for item, image in enumerate(raw.images)}
    split = prepared.split("train")
    items = [number[image.tobytes()] for image in split.images]
    np.testing.assert_array_equal(split.masks, raw.masks[items])
    np.testing.assert_array_equal(split.groups, raw.groups[items])
    assert prepared.card.counts["train"].groups == len(set(raw.groups[items]))


def test_segmentation_is_stored_with_its_edges_and_pixel_sizes(prepare_raw: Preparer) -> None:
    raw = raw_segmentation(30)
    raw.spacing = np.random.default_rng(3).random((30, 2)).astype(np.float32)
    prepared = prepare_raw(raw)
    number = {image.tobytes(): item for item, image in enumerate(raw.images)}
    for split in prepared.splits.values():
        items = [number[image.tobytes()] for image in split.images]
        np.testing.assert_array_equal(split.canny, canny_edges(raw.images[items]))
        np.testing.assert_array_equal(split.edges, edge_targets(raw.masks[items]))
        np.testing.assert_array_equal(split.spacing, raw.spacing[items])


def test_what_the_source_left_out_is_named_in_the_card(prepare_raw: Preparer) -> None:
    raw = raw_segmentation(30)
    raw.names = [f"slice {number}" for number in range(30)]
    raw.left_out = [("volume.nii.gz", "it is cut short")]
    card = prepare_raw(raw).card
    assert [(bad.item, bad.reason) for bad in card.rejected] == [("volume.nii.gz", "it is cut short")]


def test_normalisation_leaves_canny_s_edges_alone(prepare_raw: Preparer, tmp_path: Path) -> None:
    raw = raw_segmentation(30)
    card = prepare_raw(raw).card
    without, with_edges = (data_config(raw, tmp_path, in_channels=channels) for channels in (1, 2))
    assert card.normalisation(without) == (card.mean, card.std)
    assert card.normalisation(with_edges) == ((*card.mean, 0.0), (*card.std, 1.0))


def test_rejected_items_are_in_the_card_and_not_in_the_files(prepare_raw: Preparer) -> None:
    raw = raw_classification(60)
    raw.labels[7] = 99
    prepared = prepare_raw(raw)
    assert [(bad.item, bad.reason) for bad in prepared.card.rejected] == [(7, "label 99 is outside 0..2")]
    images = np.concatenate([split.images for split in prepared.splits.values()])
    assert len(images) == 59
    assert raw.images[7].tobytes() not in {image.tobytes() for image in images}


@pytest.mark.parametrize(
    ("failure", "reported"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), (UserError, "No space left on device")),
        (KeyboardInterrupt("stop"), (KeyboardInterrupt, "stop")),
    ],
)
def test_a_failed_preparation_leaves_the_old_data(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    reported: tuple[type[BaseException], str],
) -> None:
    config = config_of_source(tmp_path)
    prepare(config)
    before = contents(config.prepared)
    calls = []

    def fail_at_the_third(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise failure
        arguments[0].write_bytes(b"something")

    monkeypatch.setattr(writing, "_save", fail_at_the_third)
    with pytest.raises(reported[0], match=reported[1]):
        prepare(config)
    assert contents(config.prepared) == before
    assert visible(config.prepared.parent) == ["pixels"]


def test_a_preparation_killed_while_writing_is_tidied_up(tmp_path: Path) -> None:
    config = config_of_source(tmp_path)
    half = config.prepared.parent / ".pixels.new"
    half.mkdir(parents=True)
    (half / "train_images.npy").write_bytes(b"half")
    prepare(config)
    assert visible(config.prepared.parent) == ["pixels"]


def test_a_preparation_killed_between_its_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of_source(tmp_path)
    prepare(config)
    before = contents(config.prepared)
    config.prepared.rename(config.prepared.parent / ".pixels.old")
    monkeypatch.setattr(writing, "_save", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match="disk full"):
        prepare(config)
    assert contents(config.prepared) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "segmentation"}, "data.task=segmentation, but the source of pixels has task=classification"),
        ({"num_classes": 4}, "data.num_classes=4, but the source of pixels has num_classes=3"),
        ({"in_channels": 3}, "data.in_channels=3, but the source of pixels has in_channels=1"),
        (
            {"source": {"_target_": f"{__name__}.load", "size": 1}},
            r"data\.source\.size: there is no such .* count",
        ),
        ({"source": {"_target_": f"{__name__}.gone"}}, "has no member gone"),
    ],
)
def test_a_source_that_does_not_fit_writes_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = config_of_source(tmp_path, **change)
    with pytest.raises(UserError, match=message):
        prepare(config)
    assert not config.prepared.parent.exists()


# ---- reading --------------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named_with_its_remedy(tmp_path: Path) -> None:
    message = r"pixels/dataset\.json is missing\. Run `python -m convatlas\.prepare` .*data\.name=pixels among them"
    with pytest.raises(UserError, match=message):
        PreparedData.open(tmp_path / "pixels")


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_shape(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def damage_type(path: Path) -> None:
    np.save(path, np.load(path).astype(np.int16))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, r"train_images\.npy is missing\..*convatlas\.prepare`.*data\.name=pixels"),
        (damage_cut, r"train_images\.npy is cut short or damaged.*convatlas\.prepare`.*data\.name=pixels"),
        (damage_empty, r"train_images\.npy is cut short or damaged.*convatlas\.prepare`.*data\.name=pixels"),
        (damage_shape, r"train_images\.npy has shape \(35, 1, 8, 8\), not \(36, 1, 8, 8\)"),
        (damage_type, r"train_images\.npy holds int16, not uint8"),
    ],
)
def test_a_damaged_array_is_named(prepare_raw: Preparer, damage: Callable[[Path], None], message: str) -> None:
    folder = prepare_raw(raw_classification()).folder
    damage(folder / "train_images.npy")
    with pytest.raises(UserError, match=message):
        PreparedData.open(folder)


def change_a_byte(folder: Path) -> None:
    path = folder / "test_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_the_fingerprint(folder: Path) -> None:
    card = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(card | {"fingerprint": "0" * 64}))


@pytest.mark.parametrize(
    ("damage", "message", "of_large_sets_too"),
    [
        (change_a_byte, r"test_images\.npy is not the file that was prepared", False),
        (change_the_fingerprint, r"dataset\.json was changed: its fingerprint does not belong to its files", True),
    ],
)
def test_changed_content_is_found(
    prepare_raw: Preparer,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    message: str,
    of_large_sets_too: bool,
) -> None:
    folder = prepare_raw(raw_classification()).folder
    assert PreparedData.open(folder, verify=True).card.name == "pixels"
    damage(folder)
    for verify in (None, True):
        with pytest.raises(UserError, match=message):
            PreparedData.open(folder, verify=verify)
    monkeypatch.setattr("convatlas.data.prepared.VERIFIED_BYTES", 100)
    if of_large_sets_too:
        with pytest.raises(UserError, match=message):
            PreparedData.open(folder)
    else:
        PreparedData.open(folder)


@pytest.mark.parametrize("options", [{"download": False}, {"verify": False}])
def test_how_files_come_does_not_make_other_data(
    tmp_path: Path, prepare_raw: Preparer, options: dict[str, bool]
) -> None:
    raw = raw_classification()
    prepare_raw(raw).card.check(data_config(raw, tmp_path, source={"_target_": SOURCE, **options}))


@pytest.mark.parametrize("text", ["", "{", "{}", '{"format": 2}'])
def test_a_card_that_cannot_be_understood_is_named(prepare_raw: Preparer, text: str) -> None:
    folder = prepare_raw(raw_classification()).folder
    (folder / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json is not a data card of this version.*data\.name=pixels"):
        PreparedData.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "data.name=other, but the data prepared in .* have name=pixels"),
        ({"task": "detection"}, "data.task=detection"),
        ({"num_classes": 7}, "data.num_classes=7, but the data prepared in .* have num_classes=3"),
        ({"in_channels": 3}, "data.in_channels=3"),
        ({"split": {"validation": 0.25, "test": 0.2, "seed": 5}}, "data.split.seed=5"),
        (
            {"source": {"_target_": SOURCE, "count": 5}},
            "data.source.count=5, but the data prepared in .* have source.count=None",
        ),
    ],
)
def test_a_configuration_of_other_data_names_the_key(
    tmp_path: Path, prepare_raw: Preparer, change: dict[str, Any], message: str
) -> None:
    raw = raw_classification()
    card = prepare_raw(raw).card
    card.check(data_config(raw, tmp_path))
    with pytest.raises(UserError, match=message):
        card.check(data_config(raw, tmp_path, **change))


def test_a_split_travels_without_its_images(prepare_raw: Preparer) -> None:
    split = prepare_raw(raw_classification()).split("train")
    sent = pickle.dumps(split)
    np.testing.assert_array_equal(pickle.loads(sent).images, split.images)
    assert split.images[:5].tobytes() not in sent


def test_images_cannot_be_changed_by_accident(prepare_raw: Preparer) -> None:
    with pytest.raises(ValueError, match="read-only"):
        prepare_raw(raw_classification()).split("train").images[0] = 0


def test_reading_imports_nothing_slow() -> None:
    slow = "{'torch', 'torchvision', 'sklearn', 'scipy', 'skimage', 'pandas'}"
    program = f"import sys, convatlas.data.prepared; print(*{slow} & {{*sys.modules}})"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""
