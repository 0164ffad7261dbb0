"""A trained net in other programs: what each format gives back is what the net gives."""

from __future__ import annotations

import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

import convatlas.timm_models  # noqa: F401 - timm learns the names
from convatlas.catalogue import list_models, read_about, read_model
from convatlas.exporting import formats
from convatlas.exporting.checking import compare, images_of
from convatlas.exporting.nets import served_net
from convatlas.models.build import build_model
from convatlas.training.run import train
from convatlas.training.trained import TrainedRun, load_run
from helpers import ROOT, assert_one_sentence

EVERY = "onnx,torch_export,safetensors,timm"


@pytest.fixture(scope="module")
def kept() -> dict[str, Path]:
    """Keep the run of the module, and its exports."""
    return {}


@pytest.fixture
def run(kept, compose, tmp_path_factory) -> Path:
    """Return the folder of a short training."""
    if "run" not in kept:
        config = compose("recipe.epochs=4")
        config = config.model_copy(update={"output_dir": tmp_path_factory.mktemp("trained") / "run"})
        kept["run"] = train(config, strict=True)[0]
    return kept["run"]


@pytest.fixture
def exported(kept, run, enter) -> Path:
    """Return the folder with the run in all formats."""
    if "exported" not in kept:
        folder = run.parent.parent / "exported"
        entered = enter("export", f"run={run}", f"format={EVERY}", f"output_dir={folder}")
        assert entered.status == 0, entered.err
        (largest,) = re.findall(r"onnx: .*largest difference (\S+) on 64 test images", entered.out)
        assert 0 < float(largest) < 1e-5
        kept["exported"] = folder
    return kept["exported"]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def probabilities(trained: TrainedRun, images: torch.Tensor) -> torch.Tensor:
    """Return what the net says of images in [0, 1]."""
    ((mean,), (std,)) = trained.card.normalisation(trained.config.data)
    with torch.no_grad():
        return trained.net((images - mean) / std).softmax(dim=1)


def test_the_script_of_the_page_scores_as_the_run_did(run, exported, prepared_digits, tmp_path):
    page = (ROOT / "docs" / "export.md").read_text()
    scripts = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (script,) = (each for each in scripts if "onnxruntime" in each)
    (tmp_path / "classify.py").write_text(script)
    labels = np.load(prepared_digits / "test_labels.npy")
    resized = np.concatenate([*images_of(load_run(run), "test", len(labels), 64)])  # from 8 x 8 pixels to 32 x 32
    (tmp_path / "prepared").mkdir()
    np.save(tmp_path / "prepared" / "test_images.npy", 255 * resized)
    np.save(tmp_path / "prepared" / "test_labels.npy", labels)
    command = [sys.executable, "classify.py", exported / "onnx" / "model.onnx", "prepared"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    accuracy = json.loads((run / "metrics.json").read_text())["test"]["accuracy"]
    assert abs(float(printed.split()[0]) - 100 * accuracy) <= 0.1
    assert f"of {len(labels)} images of 10 classes" in printed


def test_an_onnx_model_tells_what_it_needs(run, exported):
    import onnxruntime

    about = onnxruntime.InferenceSession(exported / "onnx" / "model.onnx").get_modelmeta().custom_metadata_map
    card = load_run(run).card
    assert json.loads(about["classes"]) == list(card.classes)
    assert json.loads(about["input_size"]) == [1, 32, 32]
    assert json.loads(about["mean"]) == list(card.mean)
    assert json.loads(about["largest_difference"]) < 1e-5


def test_a_program_answers_as_the_net_for_batches_of_any_size(run, exported, images):
    extra = {"convatlas.json": ""}
    program = torch.export.load(exported / "torch_export" / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["convatlas.json"])["task"] == "classification"
    torch.testing.assert_close(program(images), probabilities(load_run(run), images))


def test_safetensors_and_their_description_make_the_net_again(run, exported, images):
    about = json.loads((exported / "safetensors" / "convatlas.json").read_text())
    net = build_model(about["model"]).eval()
    net.load_state_dict(load_file(exported / "safetensors" / "model.safetensors"))
    torch.testing.assert_close(net(images), load_run(run).net(images))


def test_timm_makes_the_net_again(run, exported, images):
    net = timm.create_model(f"local-dir:{exported / 'timm'}", pretrained=True).eval()
    trained = load_run(run)
    torch.testing.assert_close(net(images), trained.net(images))
    assert net.pretrained_cfg["mean"] == list(trained.card.mean)


@pytest.mark.slow
def test_8_bits_print_the_score_before_and_after(run, enter, tmp_path):
    arguments = ["format=onnx", "quantise=int8", "calibration_images=32", f"output_dir={tmp_path}"]
    entered = enter("export", f"run={run}", *arguments)
    assert entered.status == 0, entered.err
    before, after = map(float, re.findall(r"accuracy (\S+) in float32, (\S+) in int8", entered.out)[0])
    accuracy = json.loads((run / "metrics.json").read_text())["test"]["accuracy"]
    assert before == pytest.approx(accuracy, abs=1e-3)
    assert abs(after - before) < 0.05
    import onnx

    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "onnx" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds


def test_16_bits_halve_the_file_and_the_difference_is_that_to_the_whole_net(run, exported, enter, tmp_path):
    entered = enter(
        "export", f"run={run}", "format=torch_export,safetensors", "dtype=float16", f"output_dir={tmp_path}"
    )
    assert entered.status == 0, entered.err
    (largest,) = re.findall(r"largest difference (\S+) on", entered.out)
    assert 1e-6 < float(largest) < 5e-2
    file = Path("safetensors", "model.safetensors")
    assert (tmp_path / file).stat().st_size < 0.6 * (exported / file).stat().st_size


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["format=onnx", "opset=11"], "opset=11 is too old: torch's exporter and this onnx write 18 to"),
        (["format=onxn"], "format"),
        (["format=timm", "quantise=int8"], "quantise=int8 is for format=onnx"),
        (["format=safetensors", "opset=18"], "opset=18 is for format=onnx"),
        (["format=safetensors", "checkpoint=nowhere.ckpt"], "nowhere.ckpt does not exist"),
        ([], "format is missing"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(run, enter, tmp_path, words, sentence):
    entered = enter("export", f"run={run}", *words, f"output_dir={tmp_path / 'out'}")
    assert_one_sentence(entered, sentence)
    assert not list((tmp_path / "out").rglob("*.*")) if (tmp_path / "out").exists() else True


def test_a_run_of_another_version_is_one_sentence(run, enter, tmp_path):
    values = yaml.safe_load((run / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**values, "of_the_future": 1}))
    entered = enter("export", f"run={tmp_path}", "format=onnx", f"output_dir={tmp_path / 'out'}")
    assert_one_sentence(entered, str(tmp_path / "config.yaml"), "of_the_future", "another version of convatlas")


def test_a_package_that_is_not_there_is_named_with_its_extra(run, enter, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    entered = enter("export", f"run={run}", "format=onnx", f"output_dir={tmp_path / 'out'}")
    assert_one_sentence(entered, "format=onnx needs the package onnx", "pip install 'convatlas[export]'")


BOXES = torch.tensor([[1.0, 2, 30, 40], [5, 5, 20, 20], [1, 2, 30, 40.001]])
SCORES = torch.tensor([0.9, 0.4, 0.4])
LABELS = torch.tensor([1, 2, 1])


@pytest.mark.parametrize(
    ("order", "moved", "largest"),
    [
        ([0, 1, 2], 0.0, 0.0),
        ([0, 2, 1], 0.0, 0.0),  # equal scores may change places
        ([0, 1, 2], 0.02, 0.02),
        ([0, 1], 0.0, 0.5),  # the third is like the first but for its score
        ([0, 2], 0.0, math.inf),  # one of three is in the net's answer alone
        ([0, 1, 2], 9.0, math.inf),
    ],
)
def test_detections_are_compared_with_those_most_like_them(order, moved, largest):
    def net(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return BOXES, SCORES, LABELS

    def answers(images: np.ndarray) -> list[np.ndarray]:
        return [(BOXES + moved).numpy()[order], SCORES.numpy()[order], LABELS.numpy()[order]]

    found = compare(net, answers, iter([np.zeros((1, 1, 8, 8), dtype=np.float32)]))
    assert found == (1, pytest.approx(largest, abs=1e-6))


def test_an_answer_that_is_no_number_is_no_small_difference():
    answers = [torch.zeros(1, 3), torch.tensor([[0.0, math.nan, 0.0]])]
    images = np.zeros((1, 1, 8, 8), dtype=np.float32)
    _, largest = compare(lambda _: answers[0], lambda _: [answers[1].numpy()], iter([images]))
    assert math.isnan(largest)


EXPORTS = runpy.run_path(str(ROOT / "benchmarks" / "exports.py"))
FAMILIES, FORMATS, RECORD = EXPORTS["FAMILIES"], EXPORTS["FORMATS"], EXPORTS["read_record"]()
REFUSED = {
    ("onnx", "spp_net_small"): "adaptive_max_pool2d",
    ("onnx", "thundernet_small"): "ps_roi_align",
}
"""What cannot be exported, beside nets that timm does not know, and a word of the reason."""


def test_a_net_of_every_file_of_nets_is_among_the_families():
    def module(name: str) -> str:
        net = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())["model"]
        return str(net["_target_"]).rpartition(".")[0]

    assert {module(name) for name in FAMILIES} == {module(name) for name in list_models()}


def test_the_page_shows_what_was_measured_of_every_family():
    assert sorted(RECORD) == sorted(FAMILIES)
    assert EXPORTS["table"](RECORD) in (ROOT / "docs" / "export.md").read_text()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_record_has_small_differences_and_the_expected_refusals(name):
    check(name, RECORD[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_leaves_as_it_is_or_is_refused_with_the_reason(name, tmp_path_factory):
    check(name, EXPORTS["exported"](name, tmp_path_factory.getbasetemp() / "families"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if read_about(name)["task"] == "detection"])
def test_a_detector_answers_for_images_in_which_it_finds_nothing_or_one_object(name, tmp_path_factory):
    """The border of the scores is put where so few are left that most test images have none."""
    folder = tmp_path_factory.getbasetemp() / "families"
    trained = EXPORTS["trained_net"](name, folder)
    images = [*images_of(trained, "test", 6)]
    owner = getattr(trained.net, "roi_heads", trained.net)
    (border,) = [each for each in ("score_thresh", "score_threshold") if hasattr(owner, each)]
    served = served_net(trained)
    with torch.inference_mode():
        scores = torch.cat([served(torch.from_numpy(image))[1] for image in images]).sort(descending=True).values
    widest = int((scores[:6] - scores[1:7]).argmax())  # of the gaps: rounding must not cross the border
    setattr(owner, border, float(scores[widest : widest + 2].mean()))
    assert min(len(served(torch.from_numpy(image))[1]) for image in images) < 2
    program = formats.program_of(served, trained)
    formats.write_program(program, folder / "few.pt2", {})
    assert compare(served, formats.program_answers(folder / "few.pt2"), iter(images)) == (6, 0)
    if ("onnx", name) not in REFUSED:
        formats.write_onnx(program, folder / "few.onnx", trained, None)
        assert compare(served, formats.onnx_answers(folder / "few.onnx"), iter(images))[1] < 1e-2


def check(name: str, row: dict[str, Any]) -> None:
    """Fail where a family leaves otherwise than it should: `row` is what `exported` returns."""
    model, about = read_model(name)["model"], read_about(name)
    assert row["task"] == about["task"]
    own_or_timms = about["origin"] == "own" or model["_target_"] == "convatlas.models.adapters.timm_model"
    for each in FORMATS:
        if each == "timm" and not (row["task"] == "classification" and own_or_timms):
            assert "timm has no net" in row[each]
        elif (each, name) in REFUSED:
            assert REFUSED[each, name] in row[each]
        elif each == "onnx":
            assert 0 < row[each] < (1e-2 if row["task"] == "detection" else 1e-3)
        else:
            assert row[each] == 0
    if row["task"] == "detection":
        assert row["detections"] > 0
