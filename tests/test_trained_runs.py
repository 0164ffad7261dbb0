"""A trained net again: evaluated on its data, used on new pictures, in each task."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convatlas.data.card import fingerprint
from convatlas.data.decoding import decode_labels, stretched
from convatlas.data.prepared import hash_file
from convatlas.tasks.views import VIEWS, Flip, MultiScale, Shifted, TenCrop
from convatlas.training.run import train
from helpers import ROOT, TASKS_DATA, assert_one_sentence, source_options

MODELS = {"classification": "lenet5_modern", "detection": "retinanet_small", "segmentation": "unet_small"}
RECIPES = {"classification": "laptop", "detection": "detection", "segmentation": "segmentation"}


@pytest.fixture(scope="module")
def trained_runs() -> dict[str, Path]:
    """Keep the runs of a module: each task's net is trained once."""
    return {}


@pytest.fixture
def trained(trained_runs, compose, prepared, tmp_path_factory):
    """Return the folder of a short training of a task."""

    def trained(task: str) -> Path:
        if task not in trained_runs:
            data = TASKS_DATA[task]
            options = source_options(prepared[data])
            config = compose(
                *(
                    f"data={data}",
                    f"data.prepared={prepared[data]}",
                    f"model={MODELS[task]}",
                    f"recipe={RECIPES[task]}",
                ),
                *options,
            )
            config = config.model_copy(update={"output_dir": tmp_path_factory.mktemp("trained") / "run"})
            trained_runs[task] = train(config, strict=True)[0]
        return trained_runs[task]

    return trained


@pytest.mark.parametrize("task", list(TASKS_DATA))
def test_evaluating_a_run_again_gives_its_own_figures(trained, enter, task):
    folder = trained(task)
    entered = enter("evaluate", f"run={folder}", "format=json")
    assert entered.status == 0, entered.err
    assert json.loads(entered.out) == json.loads((folder / "metrics.json").read_text())["test"]


def test_a_run_in_another_precision_is_evaluated_in_it(compose, enter):
    folder = train(compose("recipe.epochs=1", "trainer.precision=bf16-mixed", "recipe.test_crop=0.9"), strict=True)[0]
    entered = enter("evaluate", f"run={folder}", "format=json")
    assert entered.status == 0, entered.err
    assert json.loads(entered.out) == json.loads((folder / "metrics.json").read_text())["test"]


@pytest.mark.slow
def test_a_detector_is_measured_with_one_image_at_a_time_and_says_so(trained, enter):
    entered = enter("measure", f"run={trained('detection')}", "batch=8", "seconds=0.01")
    assert entered.status == 0, entered.err
    assert "is measured with batch=1 alone" in entered.err


def test_data_that_were_prepared_anew_are_not_tested_on(trained, enter, tmp_path):
    other = tmp_path / "anew"
    made = enter(
        "prepare", "data=digits", "data.split.seed=1", f"data.prepared={other}", f"page={tmp_path / 'page.html'}"
    )
    assert made.status == 0, made.err
    entered = enter("evaluate", f"run={trained('classification')}", f"data={other}")
    assert entered.status != 0
    assert "data.split.seed=0, but the data prepared in" in entered.err


def test_other_images_under_the_same_options_are_not_tested_on(trained, prepared, enter, tmp_path):
    """The card agrees with the configuration, and other pictures lie behind it."""
    other = tmp_path / "anew"
    shutil.copytree(prepared["digits"], other)
    file = other / "test_images.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    card = json.loads((other / "dataset.json").read_text())
    card["files"]["test_images.npy"] = hash_file(file)
    card["fingerprint"] = fingerprint(card["files"])
    (other / "dataset.json").write_text(json.dumps(card))
    entered = enter("evaluate", f"run={trained('classification')}", f"data={other}")
    assert_one_sentence(entered, "was trained on other data", card["fingerprint"][:12], "data=FOLDER")


def test_a_part_stands_beside_its_own_record(compose, enter):
    options = ("model=fractalnet_small", "model.columns=2", "model.widths=[4,4,8]", "recipe.epochs=1")
    (folder,) = train(compose(*options), strict=True)
    assert {len(set(row)) for row in columns_of(enter("evaluate", f"run={folder}", "part=column_1").out)} == {1}
    whole = columns_of(enter("evaluate", f"run={folder}").out)
    assert whole != columns_of(enter("evaluate", f"run={folder}", "part=column_1").out)


def test_that_a_record_is_of_fewer_images_is_told(compose, enter):
    (folder,) = train(compose("recipe.epochs=1", "trainer.limit_batches=1"), strict=True)
    assert "the record is of trainer.limit_batches=1 batches" in enter("evaluate", f"run={folder}").err


def columns_of(text: str) -> list[list[str]]:
    """Return what `evaluate` prints of each metric: in the record, and now."""
    return [re.split(r" {2,}", line.strip())[1:] for line in text.splitlines()[3:] if line]


def test_an_augmentation_that_would_harm_boxes_is_refused_before_anything_is_written(compose, prepared):
    from convatlas.core.errors import UserError

    options = source_options(prepared["digit_scenes"])
    data = ("data=digit_scenes", f"data.prepared={prepared['digit_scenes']}", "model=retinanet_small", "recipe=laptop")
    config = compose(*data, *options)
    with pytest.raises(UserError, match=r"recipe\.augmentation\.crop_padding=2"):
        train(config, strict=True)
    assert not config.output_dir.exists()


def test_evaluating_leaves_the_run_as_it_is_and_writes_elsewhere(trained, enter, tmp_path):
    folder = trained("classification")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    entered = enter("evaluate", f"run={folder}", "split=validation", "tta=flip", f"output_dir={tmp_path / 'again'}")
    assert entered.status == 0, entered.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text())["tta"] == "flip"


@pytest.mark.parametrize("task", list(TASKS_DATA))
def test_predicting_pictures_of_another_size(trained, enter, tmp_path, task):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 50, 40), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(pixels[number]).convert("RGB").save(pictures / f"{number}.jpg")
    output = tmp_path / "predictions"
    entered = enter("predict", f"run={trained(task)}", str(pictures), f"output_dir={output}")
    assert entered.status == 0, entered.err
    rows = json.loads((output / "predictions.json").read_text())
    assert [Path(row["file"]).name for row in rows] == ["0.jpg", "1.jpg"]
    if task == "classification":
        assert all(row["prediction"] == row["top"][0]["class"] for row in rows)
        assert all(0.1 <= row["confidence"] <= 1 for row in rows)
    elif task == "segmentation":
        assert all(sum(row["pixels"].values()) == 50 * 40 for row in rows)
    else:
        assert all(row["count"] == len(row["objects"]) for row in rows)
    masks = sorted(output.glob("*_mask.png"))
    assert len(list(output.glob("0*.png"))) - len(masks) == 2
    assert len(masks) == (2 if task == "segmentation" else 0)
    for row, mask in zip(rows, masks, strict=False):
        classes = decode_labels(mask.read_bytes())
        assert classes.shape == (50, 40)
        names = json.loads((trained(task) / "data_card.json").read_text())["classes"]
        assert [row["pixels"][name] for name in names] == np.bincount(classes.ravel(), minlength=len(names)).tolist()
    assert (output / "predictions.csv").read_text().startswith("file,")


def test_a_volume_gets_a_mask_that_lies_where_it_does(trained, enter, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 3000, (40, 50, 3)).astype(np.int16)
    affine = np.array([[-1.5, 0, 0, 7], [0, 2, 0, -3], [0, 0, 10, 1], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "heart.nii.gz")
    for number in range(3):
        Image.fromarray(stretched(voxels[:, :, number].T)).save(tmp_path / f"slice{number}.png")
    entered = enter("predict", f"run={trained('segmentation')}", str(tmp_path), f"output_dir={tmp_path / 'out'}")
    assert entered.status == 0, entered.err
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row.get("slice") for row in rows] == [0, 1, 2, None, None, None]
    (file,) = (tmp_path / "out").glob("*_mask.nii.gz")
    mask = nibabel.load(file)
    np.testing.assert_allclose(mask.affine, affine)
    assert mask.get_data_dtype() == np.uint8
    alone = [decode_labels(path.read_bytes()) for path in sorted((tmp_path / "out").glob("*_slice*_mask.png"))]
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.stack([each.T for each in alone], axis=2))
    assert len(np.unique(alone)) > 1, "otherwise nothing is seen of how it lies"


def test_test_time_augmentation_stands_beside_the_single_view_with_its_cost(trained, enter):
    folder = trained("classification")
    entered = enter("evaluate", f"run={folder}", "tta=ten_crop", "format=json")
    assert entered.status == 0, entered.err
    found = json.loads(entered.out)
    assert found["single_view"] == json.loads((folder / "metrics.json").read_text())["test"]
    assert set(found["ten_crop"]) == set(found["single_view"])
    assert found["ten_crop"]["loss"] != found["single_view"]["loss"]
    assert found["cost"]["macs_augmented"] == 10 * found["cost"]["macs"] > 0
    assert found["cost"]["macs_factor"] == 10
    assert found["cost"]["seconds_factor"] == found["cost"]["seconds_augmented"] / found["cost"]["seconds"]
    text = enter("evaluate", f"run={folder}", "tta=flip").out
    assert "single view" in text
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("MACs")] == ["2.0"]
    assert re.search(r"With flip, accuracy is .*, at 2\.0 times the MACs\.", text)


def test_evaluate_shows_the_record_beside_what_is_measured_now(trained, enter):
    text = enter("evaluate", f"run={trained('classification')}").out
    cells = next(line.split() for line in text.splitlines() if line.startswith("accuracy  "))
    assert cells[1:3] == cells[3:5]


def test_predict_prints_the_first_answers_and_draws_what_the_net_sees(trained, enter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        Image.new("L", (30, 30), 255).save(pictures / f"{number:02d}.png")
    arguments = [f"run={trained('classification')}", "pictures"]
    first = enter("predict", *arguments)
    assert first.status == 0, first.err
    rows = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    lines = [line for line in first.out.splitlines() if line.startswith("pictures/")]
    assert len(lines) == 10
    assert f"{rows[0]['prediction']}  {rows[0]['confidence']:.1%}" in lines[0]
    assert "and 2 more" in first.out
    assert "12 predictions in predictions" in first.out
    assert "much brighter than those of the training" in first.err
    assert Image.open(tmp_path / "predictions" / "contact_sheet.png").width > 8 * 128
    found = json.loads(enter("predict", *arguments, "format=json").out)
    assert found["output_dir"] == "predictions-2"
    assert found["first"] == rows[:10]
    quiet = enter("predict", *arguments, "-q", "pictures=false")
    assert (quiet.status, quiet.out) == (0, "")
    assert not (tmp_path / "predictions-3" / "contact_sheet.png").exists()


def test_predict_reads_no_further_ahead_than_a_batch(trained, enter, tmp_path, monkeypatch):
    """Folders of any size: what is decoded and not yet answered is bounded by the batch."""
    from convatlas.data import medical

    run, pictures, ahead = trained("classification"), tmp_path / "pictures", []
    pictures.mkdir()
    for number in range(40):
        Image.new("L", (30, 30), 100).save(pictures / f"{number:02d}.png")
    decoded, decode = [], medical.decode_images
    monkeypatch.setattr(medical, "decode_images", lambda file, card: decoded.append(file) or decode(file, card))
    save, out = Image.Image.save, tmp_path / "out"

    def noting(image, path, *args, **kwargs):
        if str(path).endswith(".png") and "contact" not in str(path):
            ahead.append(len(decoded) - len(ahead))
        save(image, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", noting)
    entered = enter("predict", f"run={run}", str(pictures), "batch_size=4", f"output_dir={out}")
    assert entered.status == 0, entered.err
    assert (len(decoded), len(ahead)) == (40, 40)
    assert max(ahead) <= 2 * 4


@pytest.mark.parametrize(("task", "tta"), [("segmentation", "flip"), ("classification", "multi_scale")])
def test_views_that_do_not_fit_are_refused(trained, enter, task, tta):
    words = {"segmentation": "is for classification", "classification": "does not take images of other sizes"}[task]
    assert_one_sentence(enter("evaluate", f"run={trained(task)}", f"tta={tta}"), f"tta={tta}", words)


class MeanNet(nn.Module):
    """Logits that are the means of the left and the right half of an image."""

    def forward(self, images):
        half = images.shape[-1] // 2
        return torch.stack([images[..., :half].mean((1, 2, 3)), images[..., half:].mean((1, 2, 3))], dim=1)


@pytest.mark.parametrize("brightness", [8, 8000], ids=["", "probabilities below the smallest number"])
def test_views_are_averaged_as_probabilities(brightness):
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * brightness
    net = MeanNet()
    expected = (net(images.double()).softmax(1) + net(images.double().flip(3)).softmax(1)).log() - math.log(2)
    assert torch.allclose(Flip(net)(images).log_softmax(1).double(), expected, rtol=1e-4)


def test_ten_equal_views_change_nothing():
    images = torch.full((2, 1, 16, 16), 3.0)
    assert torch.allclose(TenCrop(MeanNet())(images).softmax(1), MeanNet()(images).softmax(1))


def test_three_sizes_are_those_of_vgg():
    views = MultiScale(MeanNet()).views(torch.rand(1, 1, 256, 256))
    assert [view.shape[-1] for view in views] == [224, 256, 288]
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 8
    expected = sum(MeanNet()(view).softmax(1) for view in MultiScale(MeanNet()).views(images)) / 3
    assert torch.allclose(MultiScale(MeanNet())(images).softmax(1), expected)


def test_ten_crop_takes_four_corners_the_centre_and_their_mirror_images():
    image = torch.zeros(1, 1, 16, 16)
    image[..., 0, 0] = 1  # seen by the upper left corner's crop alone
    views = TenCrop(MeanNet()).views(image)
    assert len(views) == 10
    assert [bool(view.any()) for view in views] == [n in (0, 5) for n in range(10)]
    assert all(torch.equal(view.flip(3), mirrored) for view, mirrored in zip(views[:5], views[5:], strict=True))


def test_other_views_are_moved_wide_cropped_and_warped():
    image = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 16, 16)  # each column has its number
    rows = {name: VIEWS[name](MeanNet()).views(image)[0][0, 0, 5] for name in ("shifted", "wide", "cropped", "warped")}
    assert rows["shifted"].tolist() == [0, 0, *range(14)]
    assert rows["wide"].tolist() == [*range(16), *[15] * 8]
    assert rows["cropped"].tolist() == [*range(4, 16), *[15] * 4]
    assert rows["warped"][0] < rows["warped"][8] < rows["warped"][15] == 15
    assert Shifted(MeanNet())(image).shape == MeanNet()(image).shape


def test_a_folder_of_images_is_read_as_a_data_set_is(trained, enter, tmp_path):
    folder, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    for name in ("images/.cache/hidden.png", "images/one.PNG", "images/below/two.png", "elsewhere/three.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "circle").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    arguments = [f"run={trained('classification')}", f"output_dir={tmp_path / 'out'}"]
    assert_one_sentence(
        enter("predict", *arguments, str(folder)), "pipe.png: it is no regular file", "skip_broken=true"
    )
    assert_one_sentence(enter("predict", *arguments, str(folder / "pipe.png")), "pipe.png is no file of an image")
    assert enter("predict", *arguments, str(folder), "skip_broken=true").status == 0
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [Path(row["file"]).name for row in rows] == ["two.png", "three.png", "one.PNG"]


def test_images_of_any_name(trained, enter, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    names = [b"a" * 251 + b".png", ("\N{GRINNING FACE}" * 62).encode() + b".png", b"\xff\xfe.png", b"two\nlines.png"]
    Image.new("L", (8, 8)).save(folder / "plain.png")
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes((folder / "plain.png").read_bytes())
    for _ in range(2):
        arguments = [f"run={trained('classification')}", str(folder), f"output_dir={tmp_path / 'out'}"]
        assert enter("predict", *arguments, "overwrite=true").status == 0
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(rows) == len(list((tmp_path / "out").glob("0*.png"))) == 5
    assert f"{folder}/\\xff\\xfe.png" in [row["file"] for row in rows]


def test_pictures_go_through_the_net_in_batches_and_answers_stay_in_order(trained, enter, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(1)
    for number in range(7):
        Image.fromarray(rng.integers(0, 255, (20 + number, 30), dtype=np.uint8)).save(pictures / f"{number}.png")
    (pictures / "3.png").write_bytes(b"no picture")
    rows = []
    for size in (1, 3):
        out = tmp_path / f"by_{size}"
        options = [f"batch_size={size}", "pictures=false", "skip_broken=true", f"output_dir={out}"]
        entered = enter("predict", f"run={trained('classification')}", str(pictures), *options)
        assert entered.status == 0, entered.err
        assert "3.png is left out" in entered.err
        assert "6 predictions in " in entered.out
        assert sorted(path.name for path in out.iterdir()) == [".convatlas.json", "predictions.csv", "predictions.json"]
        rows.append(json.loads((out / "predictions.json").read_text()))
        assert len((out / "predictions.csv").read_text().splitlines()) == 7
    assert [Path(row["file"]).stem for row in rows[0]] == list("012456")
    for one, other in zip(*rows, strict=True):
        assert one["prediction"] == other["prediction"]
        assert one["confidence"] == pytest.approx(other["confidence"], rel=1e-4)


def test_a_gpu_that_is_not_there_and_a_broken_picture_leave_nothing(trained, enter, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    arguments = [f"run={trained('classification')}", str(tmp_path / "a.png"), f"output_dir={tmp_path / 'out'}"]
    assert_one_sentence(enter("predict", *arguments), "a.png", "skip_broken=true")
    if not torch.cuda.is_available():
        assert_one_sentence(enter("predict", *arguments, "accelerator=gpu"), "accelerator=gpu: torch sees no GPU")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_run_is_a_handle_and_the_notebook_shows_it(trained, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "runs" / "overview" / "lenet5"
    folder.mkdir(parents=True)
    (folder / "seed=0").symlink_to(trained("classification"))
    (tmp_path / "my_pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (50, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "my_pictures" / "noise.png")
    notebook = json.loads((ROOT / "docs" / "from_run_to_pictures.ipynb").read_text())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    run = names["run"]
    assert run.classes == tuple(map(str, range(10)))
    assert names["images"].shape == (1, 1, 32, 32)
    assert "noise.png: " in capsys.readouterr().out
    for same in (pixels, Image.fromarray(pixels)):
        torch.testing.assert_close(run.transform(same), names["images"][0])
    answer, _ = run.task().predict(pixels[None], run.card)
    assert answer["confidence"] == pytest.approx(float(names["probabilities"].max()))


def test_a_handle_of_nothing_is_a_value_error():
    import convatlas

    with pytest.raises(ValueError, match=r"run=runs/nowhere: there is no config\.yaml"):
        convatlas.load("runs/nowhere")
