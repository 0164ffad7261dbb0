"""Damage before, during and after a preparation: a clear sentence or a counted rejection; raw files stay untouched."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import encoded, files_config, files_in, good_files, photograph, raw_files
from PIL import Image
from small_sets import raw_classification, raw_segmentation

from convatlas.core.errors import UserError
from convatlas.data import examination, prepare_dataset
from convatlas.data.batches import EvaluationBatches
from convatlas.data.image_files import ImageFiles
from convatlas.data.manifest import manifest
from convatlas.data.prepare_dataset import prepare, prepare_raw
from convatlas.data.prepared import PreparedData


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- images in files: left out and counted, or converted and counted -----------------------------------------------


def exif(orientation: int) -> Image.Exif:
    entries = Image.Exif()
    entries[0x0112] = orientation
    return entries


GOOD = encoded(photograph(90), "JPEG")
COLOURS = Image.fromarray(photograph(91))
DEEP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000

LEFT_OUT = {
    "zero bytes": (b"", "the file is empty"),
    "text named jpg": (b"no pixels here", "it is not an image of a known format"),
    "head alone": (GOOD[:30], "it cannot be decoded|it is not an image"),
    "truncated": (GOOD[: len(GOOD) - 40], "it cannot be decoded: image file is truncated"),
    "html error page": (b"<html>404</html>", "it is not an image of a known format"),
    "animation": (encoded(COLOURS, "GIF", save_all=True, append_images=[Image.fromarray(photograph(5))]), "a sequence"),
    "32 bits": (encoded(Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)), "TIFF"), "32 bits a pixel"),
    "one colour": (encoded(np.full((9, 9, 3), 7, dtype=np.uint8)), "every pixel has the value 7"),
    "one pixel": (encoded(np.full((1, 1, 3), 7, dtype=np.uint8)), "every pixel has the value 7"),
}

USED = {
    "wrong extension": (encoded(photograph(92), "PNG"), {}),
    "cmyk": (encoded(COLOURS.convert("CMYK"), "JPEG"), {"mode CMYK": 1}),
    "palette": (encoded(COLOURS.quantize(64)), {"mode P": 1}),
    "transparent": (encoded(COLOURS.convert("RGBA")), {"mode RGBA": 1}),
    "black and white": (encoded(COLOURS.convert("1")), {"mode 1": 1}),
    "grey": (encoded(photograph(93, channels=1)), {}),
    "16 bits": (encoded(Image.fromarray(DEEP)), {"16 bits a channel": 1}),
    "10 bits": (b"P5 2 1 1023\n\0\0\3\xff", {"16 bits a channel": 1}),
    "turned": (encoded(COLOURS, "JPEG", exif=exif(8)), {"turned as its EXIF data say": 1}),
    "turned and cmyk": (
        encoded(COLOURS.convert("CMYK"), "JPEG", exif=exif(3)),
        {"mode CMYK": 1, "turned as its EXIF data say": 1},
    ),
    "turned in a way that does not exist": (encoded(COLOURS, "JPEG", exif=exif(99)), {}),
    "very wide": (encoded(photograph(94, 2, 400)), {}),
}


@pytest.mark.parametrize(("content", "reason"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_an_unusable_file_is_left_out_and_named(tmp_path: Path, content: bytes, reason: str) -> None:
    raw = raw_files(tmp_path / "raw", {**good_files(), "bad.jpg": content})
    before = tree(tmp_path / "raw")
    card = prepare_raw(files_config(tmp_path), raw)
    assert [bad.item for bad in card.rejected] == ["bad.jpg"]
    assert re.search(reason, card.rejected[0].reason)
    assert sum(counts.images for counts in card.counts.values()) == 30
    assert tree(tmp_path / "raw") == before


@pytest.mark.parametrize(("content", "converted"), USED.values(), ids=USED)
@pytest.mark.parametrize("storage", [{"storage": "shards"}, {"storage": "arrays", "stored_side": 16}])
def test_an_unusual_file_is_used_and_counted(
    tmp_path: Path, content: bytes, converted: dict[str, int], storage: dict[str, Any]
) -> None:
    raw = raw_files(tmp_path / "raw", {**good_files(), "odd.jpg": content})
    before = tree(tmp_path / "raw")
    config = files_config(tmp_path, **storage)
    card = prepare_raw(config, raw)
    assert card.rejected == ()
    assert card.converted == converted
    for split in PreparedData.open(config.prepared, verify=True).splits.values():
        images = EvaluationBatches(split, image_size=16, batch_size=50)[0]["images"]
        assert images.shape == (len(split), 3, 16, 16)
        assert images.isfinite().all()
    assert tree(tmp_path / "raw") == before


def test_what_is_no_file_is_left_out_and_never_waited_for(tmp_path: Path) -> None:
    raw = raw_files(tmp_path / "raw")
    names = ("003.png", "004.jpg", "005.png", "007.png")
    missing, folder, pipe, device = places = [tmp_path / "raw" / name for name in names]
    for path in places:
        path.unlink()
    folder.mkdir()
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    card = prepare_raw(files_config(tmp_path), raw)
    assert [(bad.item, bad.reason) for bad in card.rejected] == [
        (missing.name, "the file cannot be read: No such file or directory"),
        *((path.name, "the file cannot be read: it is no regular file") for path in (folder, pipe, device)),
    ]
    assert manifest(tmp_path / "raw")["files"] == len(good_files()) - 4


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    raw = raw_files(tmp_path / "raw")
    os.truncate(tmp_path / "raw" / "003.png", 2**40)
    card = prepare_raw(files_config(tmp_path), raw)
    assert [(bad.item, "more than 1,073,741,824 bytes" in bad.reason) for bad in card.rejected] == [("003.png", True)]


def test_a_protected_file_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_files(tmp_path / "raw")
    read = ImageFiles.read

    def refuse(self: ImageFiles, item: int) -> bytes:
        if self.paths[item].name == "007.png":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read(self, item)

    monkeypatch.setattr(ImageFiles, "read", refuse)
    card = prepare_raw(files_config(tmp_path), raw)
    assert [(bad.item, bad.reason) for bad in card.rejected] == [
        ("007.png", "the file cannot be read: Permission denied")
    ]


def test_names_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    contents = {f"a\n{os.fsdecode(bytes([0xFF]))}{name}": content for name, content in good_files().items()}
    raw = raw_classification(30, images=files_in(tmp_path / "raw", contents))
    assert prepare_raw(files_config(tmp_path), raw).rejected == ()


def test_equal_pictures_in_files_of_two_formats_are_duplicates(tmp_path: Path) -> None:
    contents = good_files()
    contents["copy.bmp"] = encoded(photograph(3, 23, 27), "BMP")  # 003.png
    official = np.array(["train"] * 25 + ["test"] * 6)
    card = prepare_raw(
        files_config(tmp_path, split={"validation": 0.2, "test": 0.0, "seed": 0}),
        raw_files(tmp_path / "raw", contents, official_split=official),
    )
    assert [(bad.item, bad.reason) for bad in card.rejected] == [
        ("003.png", "the same image is copy.bmp, of the official test split")
    ]


def test_nothing_usable_is_one_sentence(tmp_path: Path) -> None:
    raw = raw_files(tmp_path / "raw", {f"{n}.jpg": b"nothing" for n in range(5)})
    with pytest.raises(UserError, match=r"not one of 5 images is usable; .* not an image of a known format"):
        prepare_raw(files_config(tmp_path), raw)
    assert not (tmp_path / "prepared" / "pictures").exists()


# ---- a configuration that does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"storage": "arrays"},
            "data.stored_side=null: .* for example data.stored_side=16, or set data.storage=shards",
        ),
        ({"in_channels": 4}, "data.in_channels=4: picture files have 1 or 3 channels"),
        ({"num_classes": 5}, "data.num_classes=5, but the source of pictures has num_classes=3"),
    ],
)
def test_files_with_a_storage_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_raw(files_config(tmp_path, **changes), raw_files(tmp_path / "raw"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"storage": "shards"}, "data.storage=shards: pictures has images of one size .* set data.storage=arrays"),
        ({"storage": "arrays", "stored_side": 8}, "data.stored_side=8: .* set data.stored_side=null"),
    ],
)
def test_arrays_with_a_storage_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_raw(files_config(tmp_path, in_channels=1, **changes), raw_classification())


def test_files_have_no_masks(tmp_path: Path) -> None:
    raw = raw_segmentation(30)
    raw.images = raw_files(tmp_path / "raw").images
    config = files_config(tmp_path, task="segmentation", num_classes=4)
    with pytest.raises(UserError, match="images in files cannot have masks"):
        prepare_raw(config, raw)


# ---- damage while preparing -----------------------------------------------------------------------------------------


def test_a_file_that_changes_while_it_is_prepared_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_files(tmp_path / "raw")
    verify = prepare_dataset.verify

    def verify_and_spoil(*arguments: Any) -> Any:
        findings = verify(*arguments)
        (tmp_path / "raw" / "002.jpg").unlink()
        return findings

    monkeypatch.setattr(prepare_dataset, "verify", verify_and_spoil)
    with pytest.raises(UserError, match=r"002\.jpg was readable a moment ago .* start again"):
        prepare_raw(files_config(tmp_path), raw)
    assert not (tmp_path / "prepared" / "pictures").exists()


def test_a_full_disk_leaves_the_old_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_files(tmp_path / "raw")
    config = files_config(tmp_path)
    prepare_raw(config, raw)
    before = tree(config.prepared)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pyarrow.OSFile", full)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device\. What was there"):
        prepare_raw(config, raw)
    assert tree(config.prepared) == before


def test_a_killed_preparation_decodes_only_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "FILES_AT_ONCE", 8)
    raw = raw_files(tmp_path / "raw")
    undisturbed = prepare_raw(files_config(tmp_path / "undisturbed"), raw)
    config = files_config(tmp_path)
    decoded: list[int] = []
    look = examination._look

    def killed_at_20(images: ImageFiles, item: int, channels: int) -> dict[str, Any]:
        if item == 20:
            raise KeyboardInterrupt
        return look(images, item, channels)

    def counted(images: ImageFiles, item: int, channels: int) -> dict[str, Any]:
        decoded.append(item)
        return look(images, item, channels)

    monkeypatch.setattr(examination, "_look", killed_at_20)
    with pytest.raises(KeyboardInterrupt):
        prepare_raw(config, raw)
    assert not config.prepared.exists()
    monkeypatch.setattr(examination, "_look", counted)
    assert prepare_raw(config, raw).to_json() == undisturbed.to_json()
    assert sorted(decoded) == list(range(16, 30))
    assert sorted(path.name for path in config.prepared.parent.iterdir()) == [".pictures.lock", "pictures"]


def test_what_was_found_is_forgotten_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "FILES_AT_ONCE", 8)
    raw = raw_files(tmp_path / "raw")
    saved = tmp_path / "saved"
    examination.examine(raw.images, 3, saved)
    assert len(list(saved.iterdir())) == 4
    (tmp_path / "raw" / "009.png").write_bytes(b"spoilt")
    assert list(examination.examine(raw.images, 3, saved).complaints) == [9]
    for file in saved.iterdir():
        file.write_bytes(b"spoilt as well")
    assert list(examination.examine(raw.images, 3, saved).complaints) == [9]


# ---- a prepared folder that was damaged afterwards ------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_table(path: Path) -> None:
    import pyarrow as pa

    batch = pa.record_batch({"x": [1, 2]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def of_another_split(path: Path) -> None:
    path.write_bytes(path.with_name("test_images_00000.arrow").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            Path.unlink,
            r"train_images_00000\.arrow is missing\. Run `python -m convatlas\.prepare` .*data\.name=pictures",
        ),
        (cut, r"train_images_00000\.arrow is cut short or damaged.*data\.name=pictures among them"),
        (empty, r"train_images_00000\.arrow is cut short or damaged.*data\.name=pictures among them"),
        (other_table, r"train_images_00000\.arrow is cut short or damaged \(it is no shard of images\)"),
        (of_another_split, "the shards of the train split hold 6 images, not 18"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    config = files_config(tmp_path)
    prepare_raw(config, raw_files(tmp_path / "raw"))
    damage(config.prepared / "train_images_00000.arrow")
    with pytest.raises(UserError, match=message):
        PreparedData.open(config.prepared)


def test_changed_bytes_of_a_shard_are_found_and_never_trained_on_unseen(tmp_path: Path) -> None:
    config = files_config(tmp_path)
    prepare_raw(config, raw_files(tmp_path / "raw"))
    path = config.prepared / "train_images_00000.arrow"
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xd8\xff")
    content[start : start + 3] = b"xyz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train_images_00000\.arrow is not the file that was prepared"):
        PreparedData.open(config.prepared, verify=True)
    split = PreparedData.open(config.prepared, verify=False).split("train")
    with pytest.raises(UserError, match=r"an image of the train split cannot be decoded, .*data.name=pictures"):
        EvaluationBatches(split, image_size=16, batch_size=50)[0]


def test_data_stored_in_another_way_are_refused(tmp_path: Path) -> None:
    raw = raw_files(tmp_path / "raw")
    prepare_raw(files_config(tmp_path), raw)
    with pytest.raises(UserError, match=r"data\.stored_side=20, but the data prepared in .* have stored_side=None"):
        PreparedData.open_for(files_config(tmp_path, stored_side=20))
    with pytest.raises(UserError, match=r"data\.storage=arrays, but the data prepared in .* have storage=shards"):
        PreparedData.open_for(files_config(tmp_path, storage="arrays", stored_side=None))


@pytest.mark.parametrize("prepared", ["raw", ".", "raw/prepared", "letters"])
def test_no_other_folder_is_replaced(tmp_path: Path, prepared: str) -> None:
    for folder in ("raw", "letters"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "kept.txt").write_text("kept")
    before = tree(tmp_path)
    config = files_config(tmp_path).model_copy(update={"root": tmp_path / "raw", "prepared": tmp_path / prepared})
    with pytest.raises(UserError, match="is no prepared data set" if prepared == "letters" else "within each other"):
        prepare(config)
    assert tree(tmp_path) == before
