"""The tree of ILSVRC 2012, small, with its development kit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from raw_files import DEVKIT, KINDS, tree, write_imagenet

from convatlas.core.errors import UserError
from convatlas.data.image_files import ImageFiles
from convatlas.data.sources.imagenet import load


@pytest.mark.parametrize(
    "options",
    [{}, {"devkit": "archive"}, {"flat": False}, {"flat": False, "devkit": "none"}],
    ids=["devkit in a folder", "devkit in its archive", "val in folders", "val in folders without devkit"],
)
def test_every_form_gives_the_same_labels(tmp_path: Path, options: dict[str, Any]) -> None:
    write_imagenet(tmp_path, **options)
    before = tree(tmp_path)
    raw = load(tmp_path, verify=False)
    assert isinstance(raw.images, ImageFiles)
    assert raw.official_split.tolist() == ["train"] * 12 + ["test"] * 6
    assert raw.labels[:12].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    truth = {f"ILSVRC2012_val_{item + 1:08d}.JPEG": item % 3 for item in range(6)}
    found = {Path(name).name: label for name, label in zip(raw.names[12:], raw.labels[12:].tolist(), strict=True)}
    assert found == truth
    assert len(raw.images.read(17)) > 500
    assert tree(tmp_path) == before


def test_classes_have_the_words_of_the_kit_and_stay_apart(tmp_path: Path) -> None:
    raw = load(write_imagenet(tmp_path), verify=False)
    assert raw.classes == ["tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)"]


def test_names_come_from_a_text_file_or_are_the_wnids(tmp_path: Path) -> None:
    write_imagenet(tmp_path, flat=False, devkit="none")
    assert load(tmp_path).classes == KINDS
    (tmp_path / "synset_words.txt").write_text("n01440764 tench\nn02012849 crane\nn03126707 crane for loads\n")
    assert load(tmp_path).classes == ["tench", "crane", "crane for loads"]


def test_a_part_of_the_kinds_is_a_data_set(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    shutil.rmtree(tmp_path / "train" / KINDS[1])
    raw = load(tmp_path, verify=False)
    assert raw.labels.tolist() == [0] * 4 + [1] * 4 + [0, 1, 0, 1]
    assert "2 validation pictures are of kinds without training pictures and not used." in raw.notes


def test_the_kit_s_archive_is_compared_with_its_checksum(tmp_path: Path) -> None:
    write_imagenet(tmp_path, devkit="archive")
    with pytest.raises(UserError, match=rf"{DEVKIT}\.tar\.gz is not the official file: its md5 is \w+, not fa75699e"):
        load(tmp_path)


def test_how_to_get_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*train\. Its terms do not let a program fetch it"):
        load(tmp_path)


@pytest.mark.parametrize(("devkit", "licence"), [("none", "not stated"), ("folder", "non-commercial research")])
def test_only_the_official_set_has_its_licence(tmp_path: Path, devkit: str, licence: str) -> None:
    raw = load(write_imagenet(tmp_path, flat=devkit != "none", devkit=devkit), verify=False)
    assert raw.licence.startswith(licence)
    assert ("ImageNet" in raw.origin) == (devkit == "folder")
