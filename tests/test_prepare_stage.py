"""A preparation in the pipeline: raw files are a dependency, and what a user has prepared by hand stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra import compose
from PIL import Image

from convatlas.core.composing import hydra_ready
from convatlas.data.manifest import manifest
from convatlas.data.prepared import PreparedData
from helpers import ROOT, assert_one_sentence


@pytest.fixture
def pets(enter, monkeypatch, tmp_path):
    """Plan a data set of a user's own pictures, in a folder of its own."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    text = Path("conf/data/image_folder.yaml").read_text()
    Path("conf/data/pets.yaml").write_text(text.replace("name: image_folder", "name: pets"))
    draws = np.random.default_rng(0)
    for label in ("left", "right"):
        for number in range(20):
            file = Path("data/raw/pets", label, f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(file)
    study = Path("conf/study/spatial_pyramid_pooling.yaml")
    study.write_text(study.read_text().replace("data=cluttered_digits", "data=pets"))
    assert enter("plan", "study=spatial_pyramid_pooling", "seeds=0").status == 0
    assert enter("resolve").status == 0
    return Path("data/prepared/pets")


def card(prepared: Path) -> dict:
    """Read a data card."""
    return json.loads((prepared / "dataset.json").read_text())


def test_raw_files_are_a_dependency_by_their_manifest(pets, enter):
    params = Path("stages.yaml").read_text()
    assert "pets: data/raw/pets" in params
    assert "raw: data/manifests/pets.json" in params
    file = Path("data/manifests/pets.json")
    assert enter("prepare", "--manifest", "pets").status == 0
    before = file.read_bytes()
    assert enter("prepare", "--manifest", "pets").status == 0
    assert file.read_bytes() == before
    Path("data/raw/pets/left/1.png").unlink()
    assert enter("prepare", "--manifest", "pets").status == 0
    assert json.loads(file.read_text())["files"] == 39


def test_what_is_prepared_already_stays_and_what_changed_is_prepared_again(pets, enter):
    def stage() -> tuple[float, int]:
        entered = enter("prepare", "--from-plan", "pets")
        assert entered.status == 0, entered.err
        return (pets / "dataset.json").stat().st_mtime_ns, sum(
            split["images"] for split in card(pets)["counts"].values()
        )

    first, count = stage()
    assert count == 40
    assert stage() == (first, 40)
    Path("data/raw/pets/left/1.png").unlink()
    second, count = stage()
    assert (second > first, count) == (True, 39)
    Path("data/raw/pets/left/2.png").unlink()
    assert enter("prepare", "data=pets").status == 0  # by hand
    by_hand = (pets / "dataset.json").stat().st_mtime_ns
    assert stage() == (by_hand, 38)
    array = pets / "train_images.npy"
    array.write_bytes(array.read_bytes()[:-1] + b"\x00\x01")
    assert stage()[0] > by_hand


def test_a_preparation_by_hand_with_other_options_is_not_undone(pets, enter):
    assert enter("prepare", "data=pets", "data.split.test=0.5").status == 0
    before = (pets / "dataset.json").read_bytes()
    entered = enter("prepare", "--from-plan", "pets")
    assert_one_sentence(entered, "data/prepared/pets", "data.split.test: 0.5, planned 0.2", "Delete the folder")
    assert (pets / "dataset.json").read_bytes() == before
    shutil.rmtree(pets)
    assert enter("prepare", "--from-plan", "pets").status == 0
    assert card(pets)["split"]["test"] == 0.2


@pytest.mark.parametrize("option", ["--from-plan", "--manifest"])
def test_what_the_plan_does_not_have(pets, enter, option):
    assert_one_sentence(enter("prepare", option, "dogs"), "plan/data/dogs.yaml", "dvc repro resolve")
    assert_one_sentence(enter("prepare", option), option, "one data set")
    for content in ("null", "[]", "{config: 1, page: {file: a}}", "{config: {}, page: null}", "{config: {}, page: {}}"):
        Path("plan/data/dogs.yaml").write_text(content)
        assert_one_sentence(enter("prepare", option, "dogs"), "plan/data/dogs.yaml", "resolve")


def test_a_plan_from_elsewhere_runs_no_program(pets, enter, tmp_path):
    file = Path("plan/data/pets.yaml")
    program = "convatlas.data.sources.image_folder.load"
    assert program in file.read_text()
    file.write_text(file.read_text().replace(program, "os.mkdir").replace("data/raw/pets", str(tmp_path / "made")))
    assert_one_sentence(enter("prepare", "--from-plan", "pets"), "plan/data/pets.yaml", "os.mkdir")
    assert not (tmp_path / "made").exists()


# ---- manifests ------------------------------------------------------------------------------------------------------


@pytest.fixture
def raw(tmp_path):
    """Make a folder of three raw files."""
    for name in ("a/1.txt", "a/2.txt", "b/1.txt"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_text(name)
    return tmp_path / "raw"


def test_names_and_contents_count_and_times_do_not(raw):
    before = manifest(raw)
    assert (before["files"], before["bytes"], before["compared_by"]) == (3, 21, "content")
    no_text = raw / os.fsdecode(b"\xff")
    no_text.touch()
    assert manifest(raw) != before
    no_text.unlink()
    os.utime(raw / "a/1.txt", (1, 1))
    (raw / "a/3.txt.part").write_text("a download that goes on")
    assert manifest(raw) == before
    (raw / "a/1.txt").write_text("A/1.txt")
    assert manifest(raw) != before
    (raw / "a/1.txt").write_text("a/1.txt")
    assert manifest(raw) == before
    (raw / "a/1.txt").rename(raw / "a/9.txt")
    assert manifest(raw) != before


def test_of_a_large_set_no_file_is_read(raw, monkeypatch):
    monkeypatch.setattr("convatlas.data.manifest.READ_WHOLE", 20)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", None)
        before = manifest(raw)
        assert before["compared_by"] == "time"
        os.utime(raw / "a/1.txt", (1, 1))
        assert manifest(raw) != before


def test_linked_folders_are_followed_and_circles_are_not(raw, tmp_path):
    before = manifest(raw)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.txt").write_text("x")
    (raw / "linked").symlink_to(tmp_path / "elsewhere")
    (raw / "linked" / "round").symlink_to(raw / "linked")
    assert manifest(raw)["files"] == before["files"] + 1
    assert manifest(raw / "nowhere")["files"] == 0


# ---- the size of images ---------------------------------------------------------------------------------------------

DRAWN = {"cluttered_digits", "digit_scenes", "heart_phantom"}
"""What a program draws, with the beginnings of the names of other forms of it."""


@pytest.fixture
def project(monkeypatch, tmp_path):
    """Stand in a folder with the project's configuration."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)


def stored_side(name: str, *options: str) -> int | None:
    """Return the side that images of a set are stored in, where the configuration says it."""
    with hydra_ready():
        data = compose("prepare", [f"data={name}", *options]).data
    arrays = data.get("storage", "arrays") == "arrays"
    return data.source.get("image_size", data.get("stored_side") if arrays else None)


SIZED = sorted(path.stem for path in (ROOT / "conf" / "data").glob("*.yaml") if stored_side(path.stem))


@pytest.mark.parametrize("name", SIZED)
def test_images_are_stored_in_the_size_that_nets_get(name):
    """But for those that are drawn, whose content the size decides."""
    drawn = any(name.startswith(known) for known in DRAWN)
    assert stored_side(name, "data.image_size=77") == (stored_side(name) if drawn else 77)


@pytest.mark.parametrize(
    ("options", "stored", "said"),
    [
        ("data.image_size=16", 16, []),
        ("data.image_size=16 data.source.image_size=12", 12, ["a side of 12 pixels; nets get them resized to 16."]),
    ],
)
@pytest.mark.usefixtures("project")
def test_two_sizes_are_told(enter, options, stored, said):
    draws = np.random.default_rng(0)
    for number in range(12):
        for folder, levels in (("images", 256), ("masks", 2)):
            file = Path("data/raw/image_mask_folder", folder, f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, levels, (12, 12), dtype=np.uint8)).save(file)
    entered = enter("prepare", "data=image_mask_folder", *options.split())
    assert entered.status == 0, entered.err
    assert PreparedData.open(Path("data/prepared/image_mask_folder")).split("train").images.shape[-1] == stored
    assert [line.partition("with ")[2] for line in entered.out.splitlines() if "resized" in line] == said
