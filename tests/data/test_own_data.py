"""One's own pictures in one command: what is found, what is written, and that the printed commands work."""

from __future__ import annotations

import json
import shlex
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from convatlas.data.own import HEAD
from helpers import ROOT, assert_one_sentence


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a configuration of its own, and pictures of three classes."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog", "eel")):
        folder = tmp_path / "My Pictures" / name
        folder.mkdir(parents=True)
        for image in range(12):
            pixels = rng.integers(0, 120, (80, 100, 3), dtype=np.uint8)
            pixels[20:60, 30 * number : 30 * number + 30] = 250
            Image.fromarray(pixels).save(folder / f"{image}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_of_pictures_becomes_a_data_set_that_can_be_named(project, enter):
    entered = enter("prepare", "data=image_folder", "data.root='My Pictures'", "format=json")
    assert entered.status == 0, entered.err
    found = json.loads(entered.out)
    assert found["images"] == {"train": 24, "validation": 6, "test": 6}
    settings = project / "conf" / "data" / "my_pictures.yaml"
    assert yaml.safe_load(settings.read_text()) == {
        "defaults": ["image_folder", "_self_"],
        "name": "my_pictures",
        "source": {"title": "My Pictures"},
        "root": "My Pictures",
        "image_size": 64,
        "in_channels": 3,
        "num_classes": 3,
    }
    assert "python -m convatlas.prepare data=my_pictures" in (project / found["page"]).read_text()
    again = enter("prepare", "data=my_pictures", "format=json")
    assert json.loads(again.out)["fingerprint"] == found["fingerprint"]
    *_, module, data, net = shlex.split(found["train"])
    trained = enter(module.removeprefix("convatlas."), data, net, "recipe.epochs=1", "tracking=none", "format=json")
    assert trained.status == 0, trained.err
    (run,) = json.loads(trained.out)
    assert (run["metric"], run["data"]) == ("accuracy", "my_pictures")
    assert (project / run["folder"] / "best.ckpt").is_file()


def test_what_the_command_line_says_stays_and_is_kept(project, enter):
    words = ["data.root='My Pictures'", "data.image_size=32", "data.split.test=0.5", "data.storage=shards"]
    words += ["data.stored_side=40"]
    entered = enter("prepare", "data=image_folder", *words)
    assert entered.status == 0, entered.err
    settings = yaml.safe_load((project / "conf" / "data" / "my_pictures.yaml").read_text())
    assert (settings["image_size"], settings["stored_side"], settings["split"]) == (32, 40, {"test": 0.5})


def test_a_file_that_is_not_ours_is_not_replaced(project, enter):
    file = project / "conf" / "data" / "my_pictures.yaml"
    file.write_text("name: my_pictures\n")
    entered = enter("prepare", "data=image_folder", "data.root='My Pictures'")
    assert_one_sentence(entered, "another data set of this name", "data.name=my_pictures_2")
    assert file.read_text() == "name: my_pictures\n"
    assert not (project / "data").exists()
    file.write_text(f"{HEAD}`\nname: my_pictures\n")
    assert enter("prepare", "data=image_folder", "data.root='My Pictures'").status == 0


def write_boxes(root):
    """Write a set in the layout of YOLO: bright squares of two classes."""
    rng = np.random.default_rng(1)
    for split, count in (("train", 16), ("val", 6)):
        for number in range(count):
            pixels, label = rng.integers(0, 90, (48, 64, 3), dtype=np.uint8), number % 2
            pixels[8:40, 16:48] = (250, 40, 40) if label else (40, 250, 40)
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "images" / split / f"{number}.png")
            (root / "labels" / split / f"{number}.txt").write_text(f"{label} 0.5 0.5 0.5 0.6667\n")
    described = {"train": "images/train", "val": "images/val", "names": ["green", "red"]}
    (root / "data.yaml").write_text(yaml.safe_dump(described))


def write_masks(root):
    """Write grey pictures with the mask of a bright square."""
    rng = np.random.default_rng(2)
    for number in range(20):
        pixels, mask = rng.integers(0, 90, (64, 64), dtype=np.uint8), np.zeros((64, 64), dtype=np.uint8)
        pixels[20:50, 10:40], mask[20:50, 10:40] = 240, 1
        for kind, array in (("images", pixels), ("masks", mask)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / kind / f"{number}.png")


@pytest.mark.parametrize(
    ("data", "write", "classes"),
    [("yolo", write_boxes, ["green", "red"]), ("image_mask_folder", write_masks, ["background", "foreground"])],
)
def test_boxes_and_masks_of_ones_own_take_one_command_too(data, write, classes, project, enter):
    write(project / "mine")
    entered = enter("prepare", f"data={data}", "data.root=mine", "data.image_size=64", "format=json")
    assert entered.status == 0, entered.err
    found = json.loads(entered.out)
    assert [*found["classes"]["train"]] == classes
    settings = yaml.safe_load((project / "conf" / "data" / "mine.yaml").read_text())
    assert settings["num_classes"] == (3 if data == "yolo" else 2)
    *_, module, named, net, recipe = shlex.split(found["train"])
    small = ("recipe.epochs=1", "recipe.batch_size=2", "trainer.limit_batches=1", "tracking=none", "format=json")
    trained = enter(module.removeprefix("convatlas."), named, net, recipe, *small)
    assert trained.status == 0, trained.err
    (run,) = json.loads(trained.out)
    assert run["data"] == "mine"
