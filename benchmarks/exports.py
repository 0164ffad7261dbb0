"""Export a net of every family in every format, and write how far each is from the net into docs/export.md.

    python benchmarks/exports.py               all that the record beside this file (`exports.json`) lacks
    python benchmarks/exports.py vgg_small     these anew

Each net is trained briefly on data that need no network, leaves in each format, and comes back as another program would
read it; both then see the same test images.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from hydra import compose
from omegaconf import OmegaConf
from safetensors.torch import load_file

import convatlas.timm_models  # noqa: F401 - timm learns the names
from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.config import DataConfig
from convatlas.core.errors import UserError
from convatlas.core.files import write_json, write_text
from convatlas.data.prepare_dataset import prepare
from convatlas.export import Options, export
from convatlas.exporting.checking import compare, images_of
from convatlas.exporting.nets import served_net
from convatlas.models.build import build_model
from convatlas.training.run import quieten_libraries, train
from convatlas.training.trained import TrainedRun, load_run

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_name("exports.json")
PAGE = ROOT / "docs" / "export.md"
FORMATS = ("onnx", "torch_export", "safetensors", "timm")
BEGIN, END = "<!-- written by benchmarks/exports.py -->", "<!-- end -->"

FAMILIES: Mapping[str, tuple[str, ...]] = {
    **{path.stem: () for path in sorted((ROOT / "conf" / "model").glob("*_small.yaml"))},
    "densenet121": (),
    "densenet_cifar": ("model.depth=10",),
    "hyper_convnet": (),
    "hyper_lstm": (),
    "hyper_rnn": (),
    "lenet5": (),
    "lstm": (),
    "preact_resnet_cifar": ("model.depth=8",),
    "resnet18": (),
    "resnet_cifar": ("model.depth=8",),
    "rnn": (),
    "searched": (),
    "stochastic_depth_timm": ("model.model_name=resnet18",),
    "unet_padded": (),
    "wide_resnet": ("model.depth=10", "model.width=1"),
}
"""A net of every family, by its name in `conf/model`, and what makes it small where there is no small one."""
SETS: Mapping[str, tuple[str, ...]] = {
    "digits": (),
    "digit_scenes": ("data.source.scenes=240",),
    "heart_phantom": ("data.source.patients=30",),
}
"""The data that they are trained on, and how much."""
TASKS = {"classification": "digits", "detection": "digit_scenes", "segmentation": "heart_phantom"}
IMAGES = 16
"""Test images of each comparison."""


def main() -> None:
    """Export what the record lacks, or what the command line names, and write record and table after each."""
    quieten_libraries()
    record = read_record()
    with TemporaryDirectory() as temporary:
        for name in sys.argv[1:] or [name for name in FAMILIES if name not in record]:
            record[name] = exported(name, Path(temporary))
            print(name, record[name], flush=True)
            write_json(RECORD, record)
            before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
            write_text(PAGE, f"{before}{BEGIN}\n{table(record)}\n{END}{rest.partition(END)[2]}")


def read_record() -> dict[str, Any]:
    """Return what was found of each family."""
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    return record


def exported(name: str, folder: Path) -> dict[str, Any]:
    """Train a net of `FAMILIES` and export it below a folder, in which the data are prepared if they are not there.

    Returns:
        Its task, for each format the largest difference or the reason of a refusal, and of detectors how many
        detections the net had on the test images.
    """
    trained = trained_net(name, folder)
    task = trained.config.data.task
    found: dict[str, Any] = {"task": task}
    for each in FORMATS:
        out = folder / each
        try:
            export(trained, each, out, Options(run=trained.folder, format=[each], test_images=IMAGES))
            found[each] = difference(trained, each, out)
        except UserError as error:
            found[each] = f"refused: {error}"
        finally:
            shutil.rmtree(out, ignore_errors=True)
    if task == "detection":
        served = served_net(trained)
        with torch.inference_mode():
            found["detections"] = sum(len(served(torch.from_numpy(image))[1]) for image in test_images(trained))
    shutil.rmtree(trained.folder)
    return found


def trained_net(name: str, folder: Path) -> TrainedRun:
    """Train a net of `FAMILIES` for ten steps, a detector for forty, so that it finds something."""
    with hydra_ready():
        about = compose("train", [f"model={name}", *FAMILIES[name]]).about
        data = TASKS[about.task]
        prepared = prepared_set(data, folder)
        source = json.loads((prepared / "dataset.json").read_text())["source"]
        recipe = "laptop" if about.task == "classification" else about.task
        rate = ["recipe.optimizer.lr=0.001"] if about.task == "classification" else []  # ten steps must not blow it up
        channels = 2 if name.startswith("saunet") else 1  # the image and its Canny edges
        options = [
            "trainer=debug", "trainer.limit_batches=10", "trainer.threads=1", "tracking=none",
            f"recipe={recipe}", "recipe.batch_size=16", f"recipe.epochs={4 if about.task == 'detection' else 1}",
            f"data={data}", f"data.prepared={prepared}", f"data.in_channels={channels}",
            f"data.image_size={96 if about.task == 'detection' else 64 if about.task == 'segmentation' else 32}",
            *(f"data.source.{key}={json.dumps(value)}" for key, value in source.items() if key != "_target_"),
            f"model={name}", *FAMILIES[name], *rate,
        ]  # fmt: skip
        config = compose_run(options, {"variant": name, "seeds": [0], "output_dir": str(folder / "runs" / name)})
    (run,) = train(config, strict=True)
    return load_run(run)


def prepared_set(name: str, folder: Path) -> Path:
    """Prepare one of `SETS` below a folder, unless it is there."""
    path = folder / name
    if not path.exists():
        with hydra_ready():
            composed = compose("prepare", [f"data={name}", f"data.prepared={path}", *SETS[name]])
        plain = OmegaConf.to_container(composed.data, resolve=True)
        prepare(DataConfig.model_validate(plain))
    return path


def test_images(trained: TrainedRun) -> Iterator[Any]:
    """Return the images of a comparison: one at a time for detectors."""
    return images_of(trained, "test", IMAGES, 1 if trained.config.data.task == "detection" else 8)


def difference(trained: TrainedRun, format_name: str, folder: Path) -> float:
    """Return the largest difference of what an exported folder answers with from what the net does."""
    if format_name == "safetensors":
        net = build_model(json.loads((folder / "convatlas.json").read_text())["model"])
        net.load_state_dict(load_file(folder / "model.safetensors"))
    elif format_name == "timm":
        net = timm.create_model(f"local-dir:{folder}", pretrained=True)
    else:
        from convatlas.exporting.formats import onnx_answers, program_answers

        file = next(folder.glob("model.*"))
        answers = onnx_answers(file) if format_name == "onnx" else program_answers(file)
        return compare(served_net(trained), answers, test_images(trained))[1]
    other = served_net(replace(trained, net=net.eval()))

    def answer(images: Any) -> Any:
        with torch.inference_mode():
            found = other(torch.from_numpy(images))
        return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]

    return compare(served_net(trained), answer, test_images(trained))[1]


def table(record: dict[str, Any]) -> str:
    """Lay the record out as a table of Markdown, with the refusals below it."""
    lines = ["| net | task | " + " | ".join(f"`{name}`" for name in FORMATS) + " |", "|---" * 6 + "|"]
    refusals: list[str] = []
    for name, row in sorted(record.items()):
        cells = []
        for each in FORMATS:
            value = row[each]
            if isinstance(value, str):
                reason = re.sub(r"convatlas\.models\.[\w.]+", "this kind", value.removeprefix("refused: "))
                refusals += [] if reason in refusals else [reason]
                cells.append(f"refused ({refusals.index(reason) + 1})")
            else:
                cells.append("0" if value == 0 else f"{value:.1e}")
        lines.append(f"| {name} | {row['task']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(refusals, start=1))])


if __name__ == "__main__":
    main()
