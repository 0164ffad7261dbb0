"""`convatlas export run=runs/overview/lenet5/seed=0 format=onnx`: a trained net for other programs.

    onnx          model.onnx, for onnxruntime; classes, input size and normalisation in its metadata
    torch_export  model.pt2, for torch.export.load; the same in its extra file convatlas.json
    safetensors   model.safetensors with the net's own names, and convatlas.json
    timm          model.safetensors and config.json, for timm.create_model("local-dir:FOLDER", pretrained=True)

The first two take images (B, C, S, S) in [0, 1] and normalise them; they answer with probabilities, detectors with
boxes, scores and labels of one image. Both are compared with the net on test images before they get their names.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from convatlas.core.answers import Quiet, answering
from convatlas.core.cli import read_options, run
from convatlas.core.config import Positive
from convatlas.core.errors import UserError
from convatlas.core.folders import check_replaceable, written_folder
from convatlas.core.imports import quick_imports

if TYPE_CHECKING:
    from convatlas.exporting.checking import Answers
    from convatlas.models.served import Served
    from convatlas.training.trained import TrainedRun

Format = Literal["onnx", "torch_export", "safetensors", "timm"]
TOLERANCE = {"float32": 1e-3, "float16": 5e-2}
"""The difference from which an exported net counts as wrong; in float32 sums in another order give about 1e-6."""
PIXELS = 0.1
"""The same for detectors, whose boxes are in pixels."""
CALIBRATION_BATCH = 16


class Options(Quiet):
    """What the command line may say."""

    run: Path
    format: Annotated[list[Format], Field(min_length=1)]
    """Several are a list, onnx,timm; each gets a folder of its name in output_dir."""
    checkpoint: Path | None = None
    """Weights to take instead of the run's best.ckpt."""
    data: Path | None = None
    """Where the run's prepared data lie now, if they were moved."""
    output_dir: Path | None = None
    """null takes exports/ and the run's own path below runs/."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the weights, and of what is computed with them; inputs and outputs stay float32."""
    quantise: Literal["none", "int8"] = "none"
    """8-bit weights and activations in ONNX, calibrated on training images; prints the accuracy before and after."""
    calibration_images: Positive = 256
    opset: int | None = None
    """Of ONNX; null takes the one that torch's exporter writes."""
    test_images: Positive = 64
    """Test images on which the net and its exported form are compared."""


def main() -> None:
    """Export a run."""
    options = read_options(Options, sys.argv[1:])
    _check(options)
    with quick_imports():
        import torch

        from convatlas.training.run import quieten_libraries
        from convatlas.training.trained import load_run

    quieten_libraries()
    trained = load_run(options.run, options.checkpoint, options.data)
    if trained.config.data.module is not None:
        raise UserError(f"{options.run}: what data.module does to images is not known; export the net in your code.")
    torch.set_num_threads(trained.config.trainer.threads)
    folder = options.output_dir or default_folder(trained.folder)
    for each in options.format:
        check_replaceable(folder / each, "export", "output_dir")
    with answering(options) as answer:
        found = [export(trained, each, folder / each, options) for each in options.format]
        answer("\n".join(map(said, found)), found)


def _check(options: Options) -> None:
    if options.quantise == "int8" and options.format != ["onnx"]:
        raise UserError("quantise=int8 is for format=onnx alone; set it, or leave quantise out.")
    if options.quantise == "int8" and options.dtype == "float16":
        raise UserError("quantise=int8 begins with the net in float32; leave dtype=float16 out.")
    if options.opset is not None and "onnx" not in options.format:
        raise UserError(f"opset={options.opset} is for format=onnx; leave it out.")
    if "calibration_images" in options.model_fields_set and options.quantise == "none":
        raise UserError(f"calibration_images={options.calibration_images} is for quantise=int8; leave it out.")
    if "test_images" in options.model_fields_set and not {"onnx", "torch_export"} & set(options.format):
        raise UserError(
            f"test_images={options.test_images}: safetensors and timm hold the weights as they are, so no answers are "
            "compared; leave it out."
        )


def default_folder(run: Path) -> Path:
    """Return `exports/overview/lenet5/seed=0` for `runs/overview/lenet5/seed=0`, and its last parts for others."""
    parts = run.resolve().parts
    below = parts[len(parts) - parts[::-1].index("runs") :] if "runs" in parts else parts[-3:]
    return Path("exports", *below)


def export(trained: TrainedRun, format_name: Format, folder: Path, options: Options) -> dict[str, Any]:
    """Write one format and check it; returns the description that it carries, with `folder` and `megabytes`.

    Raises:
        UserError: the net cannot be written so, or what was written answers differently.
    """
    from convatlas.exporting import formats
    from convatlas.exporting.nets import describe, served_net

    served = served_net(trained)
    if options.dtype == "float16":
        trained = replace(trained, net=deepcopy(trained.net).half())
    description = describe(trained) | {"dtype": options.dtype}
    single = served.one_at_a_time
    if options.dtype == "float16" and single and format_name in ("onnx", "torch_export"):
        raise UserError(
            f"dtype=float16: a detector chooses its boxes in float32; leave it out for format={format_name}."
        )
    with written_folder(folder, "export", "output_dir") as partial:
        if format_name == "safetensors":
            formats.write_safetensors(trained, partial, description)
        elif format_name == "timm":
            formats.write_timm(trained, partial, description, timms_name(trained))
        else:
            program = formats.program_of(served_net(trained), trained)
            if format_name == "torch_export":
                file = partial / "model.pt2"
                formats.write_program(program, file, description)
                description |= compared(trained, served, formats.program_answers(file), options, "torch.export")
                formats.write_program(program, file, description)
            else:
                file = partial / "model.onnx"
                formats.write_onnx(program, file, trained, options.opset)
                description |= compared(trained, served, formats.onnx_answers(file), options, "ONNX")
                if options.quantise == "int8":
                    description |= quantised(trained, file, options)
                formats.describe_onnx(file, description)
        megabytes = sum(path.stat().st_size for path in partial.iterdir()) / 1e6
    return description | {"folder": folder.as_posix(), "megabytes": megabytes}


def compared(
    trained: TrainedRun, served: Served, answers: Answers, options: Options, format_name: str
) -> dict[str, Any]:
    """Compare an exported net with the net, in float32, on test images.

    Returns:
        `checked_images` and `largest_difference`, for the description.

    Raises:
        UserError: they differ by more than rounding, or the exported net fails.
    """
    from convatlas.exporting.checking import compare, images_of
    from convatlas.exporting.formats import explained

    single = served.one_at_a_time
    images = images_of(trained, "test", options.test_images, 1 if single else 8)
    with explained(trained, format_name):
        count, largest = compare(served, answers, images)
    tolerance = PIXELS if single else TOLERANCE[options.dtype]
    if not largest <= tolerance:
        raise UserError(
            f"The exported net answers otherwise than the net on {count} test images: the largest difference is "
            f"{largest:.2g}, and {tolerance:g} is allowed. Nothing was written; take another format."
        )
    return {"checked_images": count, "largest_difference": largest}


def quantised(trained: TrainedRun, file: Path, options: Options) -> dict[str, Any]:
    """Replace an ONNX model by its 8-bit form; returns the scores on the test split before and after."""
    from convatlas.exporting.checking import ForeignNet, images_of
    from convatlas.exporting.formats import onnx_answers
    from convatlas.exporting.quantising import quantise
    from convatlas.models.served import SERVED
    from convatlas.tasks import task_class
    from convatlas.training.testing import tested

    score = task_class(trained.config).score
    single = SERVED[trained.config.data.task].one_at_a_time
    images = images_of(trained, "train", options.calibration_images, 1 if single else CALIBRATION_BATCH)
    small = file.with_name("int8.onnx")
    quantise(file, small, images)
    before, after = (tested(trained, ForeignNet(onnx_answers(each), trained), "test")[0] for each in (file, small))
    small.replace(file)
    return {"quantised": "int8", "metric": score, "score_float32": before[score], "score_int8": after[score]}


def timms_name(trained: TrainedRun) -> str:
    """Return timm's name of a run's net; for a net of this project, that of `convatlas.timm_models`.

    Raises:
        UserError: it has none.
    """
    model, task = trained.config.model, trained.config.data.task
    if task != "classification":
        raise UserError(f"format=timm: timm has no nets for {task}; take format=safetensors.")
    if model["_target_"] == "convatlas.models.adapters.timm_model":
        return str(model["model_name"])
    from convatlas.timm_models import name_of

    name = name_of(model["_target_"])
    if name is None:
        raise UserError(
            f"format=timm: timm has no net of {model['_target_']}, only its own and convatlas's own; take "
            "format=safetensors."
        )
    return name


def said(description: dict[str, Any]) -> str:
    """Put what was found out about an exported net into words."""
    words = f"{description['folder']}: {description['megabytes']:.2f} MB"
    if "largest_difference" in description:
        count, largest = description["checked_images"], description["largest_difference"]
        words += f"; largest difference {largest:.2g} on {count} test images"
    if "quantised" in description:
        before, after = description["score_float32"], description["score_int8"]
        words += f" before quantising; {description['metric']} {before:.4f} in float32, {after:.4f} in int8"
    return words


if __name__ == "__main__":
    run(main)
