"""The page of a data set: it needs nothing but itself, and says what the card says."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from picture_files import encoded, files_config, good_files, photograph, raw_files
from PIL import Image
from small_sets import data_config, raw_classification, raw_detection, raw_segmentation

from convatlas.core.errors import UserError
from convatlas.data.card import NearPair
from convatlas.data.prepare_dataset import prepare_raw
from convatlas.data.prepared import PreparedData
from convatlas.data.raw import RawDataset
from convatlas.reporting.data_page import _cautions, render_data_page, write_data_page


class Page(HTMLParser):
    """What is in a page: its words, pictures, and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        self.addresses += [value or "" for key, value in attrs if key in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def page_of(raw: RawDataset, folder: Path) -> Page:
    config = data_config(raw, folder)
    prepare_raw(config, raw)
    return Page(render_data_page(PreparedData.open(config.prepared)))


@pytest.mark.parametrize("make", [raw_classification, raw_detection, raw_segmentation])
def test_every_class_has_pictures_and_nothing_comes_from_outside(
    make: Callable[[], RawDataset], tmp_path: Path
) -> None:
    raw = make()
    page = page_of(raw, tmp_path)
    shown = [image for image in page.images if "training images of" in (image["alt"] or "")]
    classes = raw.classes[1:] if raw.boxes is not None else raw.classes
    assert [image["alt"].split(" of ")[1] for image in shown] == classes
    for image in page.images:
        picture = Image.open(BytesIO(b64decode(image["src"].split(",")[1])))
        assert picture.size == (int(image["width"]), int(image["height"]))
    assert all(address.startswith(("data:image/webp;base64,", "#", "../index.html")) for address in page.addresses)


def test_it_says_what_was_left_out_and_why(tmp_path: Path) -> None:
    raw = raw_classification()
    raw.labels[7], raw.labels[8] = 99, 98
    raw.left_out = [("<script>alert(1)</script>.png", "it is cut short")]
    page = page_of(raw, tmp_path)
    assert "3 items by reason" in page.text
    assert "label … is outside … 2" in page.text  # both labels in one line
    assert "label 99 is outside 0..2" in page.text
    assert "<script>alert(1)</script>.png it is cut short" in page.text


def test_it_warns_of_what_a_reader_must_know(tmp_path: Path) -> None:
    labels = np.array([0] * 50 + [1] * 4 + [2] * 6)
    images = raw_classification().images.copy()
    images[1] = images[0]
    images[50] = images[2]
    page = page_of(raw_classification(labels=labels, images=images, made=True), tmp_path)
    assert "These images are made by a program" in page.text
    assert "The classes are unbalanced: the training split has" in page.text
    assert "Equal images with different annotations: 1 pair." in page.text


def test_near_copies_in_different_splits_are_shown_side_by_side(tmp_path: Path) -> None:
    contents = good_files()
    contents["again.jpg"] = encoded(photograph(3, 23, 27), "JPEG", quality=70)  # 003.png
    official = np.array(["train"] * 25 + ["test"] * 6)
    config = files_config(tmp_path, split={"validation": 0.2, "test": 0.0, "seed": 0})
    card = prepare_raw(config, raw_files(tmp_path / "raw", contents, official_split=official))
    page = Page(render_data_page(PreparedData.open(config.prepared)))
    (pair,) = card.near_across
    assert (pair.item, pair.other) == ("again.jpg", "003.png")
    assert f"1 test image (16.7%) looks like one of the {pair.other_split} split." in page.text
    assert f"test again.jpg, {pair.other_split} 003.png: {pair.similarity:.3f}" in page.text
    shown = [image for image in page.images if "beside" in image["alt"]]
    assert [image["alt"] for image in shown] == [f"again.jpg of test beside 003.png of {pair.other_split}"]
    assert "of many sizes, RGB" in page.text


def test_it_holds_the_fingerprint_and_the_command_and_is_the_same_each_time(tmp_path: Path) -> None:
    raw = raw_classification()
    config = data_config(raw, tmp_path)
    card = prepare_raw(config, raw)
    texts = []
    for name in ("one.html", "other.html"):
        write_data_page(config.prepared, tmp_path / "reports" / name)
        texts.append((tmp_path / "reports" / name).read_text())
    assert texts[0] == texts[1]
    assert card.fingerprint in texts[0]
    assert "python -m convatlas.prepare data=pixels" in texts[0]
    assert not re.search(re.escape(str(tmp_path)), texts[0])


def test_a_damaged_folder_gets_no_page(tmp_path: Path) -> None:
    raw = raw_classification()
    config = data_config(raw, tmp_path)
    prepare_raw(config, raw)
    (config.prepared / "test_labels.npy").unlink()
    with pytest.raises(UserError, match=r"test_labels\.npy is missing"):
        write_data_page(config.prepared, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(("pairs", "said"), [(2, "look like one of the train split"), (40, "look alike by nature")])
def test_images_that_are_alike_by_nature_are_told_once(tmp_path: Path, pairs: int, said: str) -> None:
    raw = raw_classification()
    card = prepare_raw(data_config(raw, tmp_path), raw)
    pair = {"split": "test", "position": 0, "other": 1, "other_split": "train", "other_position": 1, "similarity": 0.99}
    alike = tuple(NearPair(item=item, **pair) for item in range(pairs))
    many = card.counts["test"].model_copy(update={"images": 100})
    cautions = _cautions(card.model_copy(update={"near_across": alike, "counts": {**card.counts, "test": many}}))
    assert [said in caution for caution in cautions if "alike" in caution or "like one" in caution] == [True]
