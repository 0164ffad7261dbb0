"""What a file becomes does not depend on who reads it: every source, and a prediction, decode and fit it alike."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from picture_files import encoded, files_config, photograph, raw_files
from PIL import Image
from raw_files import save
from small_sets import data_config, raw_classification

from convatlas.core.config import DataConfig
from convatlas.data.batches import EvaluationBatches
from convatlas.data.card import Card, normalisation
from convatlas.data.decoding import BadImageError, decode_image
from convatlas.data.prepare_dataset import prepare, prepare_raw
from convatlas.data.prepared import PreparedData
from convatlas.data.sources import image_mask_folder, pascal_voc
from convatlas.data.squares import Geometry, fit_image

SIDE = 24
COLOURS = photograph(1, SIDE, SIDE)
GREY = np.linspace(0, 255, SIDE * SIDE).astype(np.uint8).reshape(SIDE, SIDE)
DEEP = GREY.astype(np.uint16) * 257


def exif(orientation: int) -> Image.Exif:
    entries = Image.Exif()
    entries[0x0112] = orientation
    return entries


def pages(form: str) -> bytes:
    return encoded(
        Image.fromarray(COLOURS), form, save_all=True, append_images=[Image.fromarray(photograph(s)) for s in (2, 3)]
    )


def declared(png: bytes, side: int) -> bytes:
    """Let the head of a PNG say that it is as large as this."""
    head = png[12:16] + struct.pack(">II", side, side) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


def colours(grey: np.ndarray) -> np.ndarray:
    return grey[..., None].repeat(3, axis=2)


PALETTE = Image.fromarray(COLOURS).quantize(64)
FILES: dict[str, tuple[bytes, np.ndarray | str]] = {
    "turned by a quarter": (encoded(np.rot90(COLOURS), exif=exif(6)), COLOURS),
    "turned by a half": (encoded(np.rot90(COLOURS, 2), exif=exif(3)), COLOURS),
    "mirrored": (encoded(COLOURS[:, ::-1], exif=exif(2)), COLOURS),
    "16 bits": (encoded(Image.fromarray(DEEP)), colours(GREY)),
    "16 bits, high byte first": (encoded(Image.fromarray(DEEP.astype(">u2")), "TIFF"), colours(GREY)),
    "palette": (encoded(PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "transparent": (encoded(Image.fromarray(COLOURS).convert("RGBA")), COLOURS),
    "grey and transparent": (encoded(Image.fromarray(GREY).convert("LA")), colours(GREY)),
    "cmyk": (encoded(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS),
    "1 bit": (encoded(Image.fromarray(GREY > 99)), colours((GREY > 99) * np.uint8(255))),
    "animation": (pages("GIF"), "it is a sequence of 3 images, not one"),
    "pages": (pages("TIFF"), "it is a sequence of 3 images, not one"),
    "empty": (b"", "the file is empty"),
    "a bomb": (declared(encoded(COLOURS), 60_000), "it has more than 100,000,000 pixels"),
    "cut short": (encoded(COLOURS)[:-200], "it cannot be decoded"),
    "text": (b"no pixels", "it is not an image of a known format"),
}
MORE_BITS = {  # what mask folders stretch, as they hold medical images
    "32 bits": (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "it has 32 bits a pixel"),
    "floats": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "it has 32 bits a pixel"),
}
XML = (
    "<annotation><object><name>cat</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    "</object></annotation>"
)


def by_boxes(path: Path) -> np.ndarray | str:
    (path.parent.parent / "Annotations").mkdir()
    for name in (path.stem, "other"):
        (path.parent.parent / "Annotations" / f"{name}.xml").write_text(XML)
    save(path.parent / "other.png", photograph(9, SIDE, SIDE))
    raw = pascal_voc.load(path.parent.parent, classes=["cat"], image_size=SIDE)
    return raw.images[raw.names.index("odd")] if "odd" in raw.names else dict(raw.left_out)["odd"]


def by_masks(path: Path) -> np.ndarray | str:
    root = path.parent.parent
    path.parent.rename(root / "images")
    save(root / "images" / "other.png", photograph(9, SIDE, SIDE))
    for name in ("odd", "other"):
        save(root / "masks" / f"{name}.png", (GREY > 99).astype(np.uint8))
    raw = image_mask_folder.load(root, channels=3, image_size=SIDE)
    name = f"odd{path.suffix}"
    return raw.images[raw.names.index(name)] if name in raw.names else dict(raw.left_out)[name]


def by_folders(path: Path) -> np.ndarray | str:
    raw = raw_files(path.parent / "more")
    raw.images.paths = (path, *raw.images.paths[1:])  # type: ignore[union-attr]
    config = files_config(path.parent.parent, storage="arrays", stored_side=SIDE, image_size=SIDE)
    card = prepare_raw(config, raw)
    if card.rejected:
        return card.rejected[0].reason
    splits = PreparedData.open(config.prepared).splits.values()
    return np.concatenate([split.images for split in splits])  # the others are photographs of their own


def by_prediction(path: Path) -> np.ndarray | str:
    try:
        return decode_image(path, Card.model_construct(image_shape=(3, SIDE, SIDE), percentiles=False)).pixels
    except BadImageError as error:
        return str(error)


READERS: dict[str, Callable[[Path], np.ndarray | str]] = {
    "boxes": by_boxes,
    "masks": by_masks,
    "folders": by_folders,
    "prediction": by_prediction,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", [*FILES, *MORE_BITS])
def test_a_file_is_the_same_for_every_reader(tmp_path: Path, kind: str, reader: str) -> None:
    content, expected = (FILES | MORE_BITS)[kind]
    path = tmp_path / "JPEGImages" / "odd.png"
    path.parent.mkdir()
    path.write_bytes(content)
    found = READERS[reader](path)
    stretches = reader == "masks" and "bits" in kind + "bits" * (kind == "floats") and kind != "1 bit"
    if stretches:
        assert isinstance(found, np.ndarray)
        levels = found[0].reshape(-1).astype(int)
        assert (levels[0], levels[-1]) == (0, 255)
        assert (np.diff(levels) >= 0).all()
    elif isinstance(expected, str):
        assert isinstance(found, str)
        assert expected in found
    else:
        assert isinstance(found, np.ndarray)
        planes = expected.transpose(2, 0, 1)
        assert (found == planes).reshape(-1, planes.size).all(axis=1).any()


# ---- the shape ------------------------------------------------------------------------------------------------------


def prepared_folders(root: Path, **storage: Any) -> DataConfig:
    for label in range(3):
        for item in range(10):
            save(root / "raw" / f"c{label}" / f"{item}.png", photograph(10 * label + item, 30 + item, 50 - item))
    return files_config(root, source={"_target_": "convatlas.data.sources.image_folder.load"}, image_size=16, **storage)


def prepared_boxes(root: Path, fit: str) -> DataConfig:
    (root / "raw" / "Annotations").mkdir(parents=True)
    for item in range(20):
        save(root / "raw" / "JPEGImages" / f"{item}.png", photograph(item, 30 + item % 3, 50))
        (root / "raw" / "Annotations" / f"{item}.xml").write_text(XML)
    source = {"_target_": "convatlas.data.sources.pascal_voc.load", "classes": ["cat"], "image_size": 32, "fit": fit}
    return files_config(root, source=source, task="detection", num_classes=2, image_size=16, storage="arrays")


def prepared_masks(root: Path) -> DataConfig:
    for item in range(20):
        mask = np.zeros((30, 50), np.uint8)
        mask[5:9] = 1
        save(root / "raw" / "images" / f"{item}.png", photograph(item, 30, 50))
        save(root / "raw" / "masks" / f"{item}.png", mask)
    source = {"_target_": "convatlas.data.sources.image_mask_folder.load", "channels": 3, "image_size": 32}
    return files_config(root, source=source, task="segmentation", num_classes=2, image_size=16, storage="arrays")


SHAPES: dict[str, Callable[[Path], DataConfig]] = {
    "centre": lambda root: prepared_folders(root, storage="arrays", stored_side=24),
    "centre of shards": lambda root: prepared_folders(root, storage="shards", stored_side=None),
    "centre of smaller shards": lambda root: prepared_folders(root, storage="shards", stored_side=20),
    "stretch": lambda root: prepared_boxes(root, "stretch"),
    "letterbox": lambda root: prepared_boxes(root, "letterbox"),
    "letterbox of masks": prepared_masks,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_image_gets_the_pixels_that_training_saw(tmp_path: Path, shape: str) -> None:
    config = SHAPES[shape](tmp_path)
    prepare(config)
    prepared = PreparedData.open_for(config)
    card = prepared.card
    mean, std = card.normalisation(config)
    seen = []
    for split in prepared.splits.values():
        images = EvaluationBatches(split, image_size=16, batch_size=50)[0]["images"]
        if split.boxes is None:
            images = images * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
        seen.append(images)
    paths = [path for path in (tmp_path / "raw").rglob("*.png") if path.parent.name != "masks"]
    for path in paths:
        image, _ = fit_image(decode_image(path, card).pixels, card, 16)
        apart = (torch.cat(seen) - image).abs().amax(dim=(1, 2, 3))
        assert apart.min() < 1e-5, path


@pytest.mark.parametrize("shape", SHAPES)
def test_the_geometry_leads_back(tmp_path: Path, shape: str) -> None:
    """A white rectangle is found in the square where the geometry says, and its box comes back."""
    config = SHAPES[shape](tmp_path)
    card = prepare(config)
    pixels = np.zeros((3, 40, 80), np.uint8)
    box = np.array([[35.0, 10, 55, 25]])
    pixels[:, 10:25, 35:55] = 255
    image, geometry = fit_image(pixels, card, 64)
    rows, columns = torch.nonzero(image[0] > 0.5, as_tuple=True)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(geometry.forward(box)[0], found, atol=2)
    np.testing.assert_allclose(geometry.back(geometry.forward(box)), box)
    back = geometry.maps_back(image[:1], (40, 80))[0]
    rows, columns = torch.nonzero(back > 0.5, as_tuple=True)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found, box[0], atol=3)


def test_slices_cut_by_millimetres_are_not_guessed() -> None:
    card = Card.model_construct(
        name="heart", storage="arrays", image_shape=(1, 24, 24), fitted="millimetres", percentiles=True
    )
    image, geometry = fit_image(GREY[None], card, 24)
    np.testing.assert_allclose(image.numpy() * 255, GREY[None], rtol=1e-6)
    assert geometry == Geometry((1.0, 1.0), (0.0, 0.0))
    with pytest.raises(BadImageError, match="does not tell how many millimetres"):
        fit_image(np.zeros((1, 30, 24), np.uint8), card, 24)


# ---- the names ------------------------------------------------------------------------------------------------------


def test_rows_get_the_names_of_their_files(tmp_path: Path) -> None:
    config = prepared_folders(tmp_path, storage="arrays", stored_side=24)
    prepare(config)
    prepared = PreparedData.open_for(config)
    for split in ("validation", "test"):
        labels = prepared.split(split).labels
        rows = pd.DataFrame({"index": np.arange(len(labels))[::-1]})
        files = prepared.with_files(rows, split)["file"]
        assert [int(name.partition("/")[0].removeprefix("c")) for name in files] == labels[::-1].tolist()
        assert len(set(files)) == len(labels)
    for damaged in ("[]", "{", '{"test": ["one"]}', '{"test": 5}'):
        (config.prepared / "names.json").write_text(damaged)
        assert "file" not in prepared.with_files(rows, "test"), "names that are damaged cost no run"


# ---- the normalisation ----------------------------------------------------------------------------------------------


def test_a_channel_without_spread_becomes_zero(tmp_path: Path) -> None:
    raw = raw_classification(images=np.concatenate([raw_classification().images] * 3, axis=1))
    raw.images[:, 1] = 77
    config = data_config(raw, tmp_path)
    card = prepare_raw(config, raw)
    assert card.std[1] == 0
    mean, std = card.normalisation(config)
    assert (mean, std[1]) == (card.mean, 1.0)
    images = EvaluationBatches(PreparedData.open(config.prepared).split("train"), image_size=8, batch_size=50)[0]
    assert images["images"][:, 1].abs().max() < 1e-6


@pytest.mark.parametrize(("std", "used"), [(0.25, 0.25), (0.0, 1.0), (1e-9, 1.0)])
def test_rounding_is_no_spread(std: float, used: float) -> None:
    assert normalisation((0.5,), (std,)) == ((0.5,), (used,))
