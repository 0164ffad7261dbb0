"""The formats: each writes a folder of one trained net, and the first two give it back as `Answers`."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from convatlas.core.errors import UserError
from convatlas.core.extras import load_extra
from convatlas.core.files import atomic_write, write_json
from convatlas.exporting.checking import Answers
from convatlas.models.served import SERVED, Served, traced
from convatlas.training.trained import TrainedRun

__all__ = [
    "LEAST_OPSET",
    "METADATA",
    "describe_onnx",
    "explained",
    "onnx_answers",
    "program_answers",
    "program_of",
    "write_onnx",
    "write_program",
    "write_safetensors",
    "write_timm",
]

METADATA = "convatlas.json"
"""The description of an exported net: a file beside safetensors, and inside a `torch.export` program."""
NOT_TIMMS = {"_target_", "_convert_", "model_name", "num_classes", "in_channels"}
"""Keys of the section `model` that are no arguments of the net in timm, or have another name there."""
LEAST_OPSET = 18
"""torch's exporter writes this one and newer ones."""


# ---- torch.export ---------------------------------------------------------------------------------------------------


def program_of(served: Served, trained: TrainedRun) -> torch.export.ExportedProgram:
    """Trace a net for batches of any size, a detector for one image.

    Raises:
        UserError: it cannot be traced; the message has torch's reason.
    """
    data = trained.config.data
    with explained(trained, "torch.export"):
        return traced(served, (data.in_channels, data.image_size, data.image_size))


def write_program(program: torch.export.ExportedProgram, path: Path, description: Mapping[str, Any]) -> None:
    """Write a program with its description, which `torch.export.load(path, extra_files={METADATA: ""})` gives back."""
    with atomic_write(path) as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(description)})


def program_answers(path: Path) -> Answers:
    """Load a program of `write_program`."""
    module = torch.export.load(path).module()

    def answers(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        with torch.no_grad():
            found = module(torch.from_numpy(images))
        return [each.numpy() for each in (found if isinstance(found, tuple | list) else (found,))]

    return answers


# ---- ONNX -----------------------------------------------------------------------------------------------------------


def write_onnx(program: torch.export.ExportedProgram, path: Path, trained: TrainedRun, opset: int | None) -> None:
    """Write a traced net as ONNX, by torch's own exporter.

    Raises:
        UserError: the packages are not there, `opset` is too old or unknown, or ONNX has no such operator.
    """
    onnx = load_extra("onnx", "export", "format=onnx")
    load_extra("onnxscript", "export", "format=onnx")
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not LEAST_OPSET <= opset <= newest:
        raise UserError(
            f"opset={opset} is too {'old' if opset < LEAST_OPSET else 'new'}: torch's exporter and this onnx write "
            f"{LEAST_OPSET} to {newest}; choose one of them, or leave it out."
        )
    with explained(trained, "ONNX"), torch.no_grad():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=list(SERVED[trained.config.data.task].outputs),
            opset_version=opset,
            verbose=False,
        )
        assert exported is not None
        content = exported.model_proto.SerializeToString()
    with atomic_write(path) as file:
        file.write(content)


def describe_onnx(path: Path, description: Mapping[str, Any]) -> None:
    """Put a description into a model's metadata: each key, its value as JSON but for texts."""
    onnx = load_extra("onnx", "export", "format=onnx")
    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}
    )
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


def onnx_answers(path: Path, threads: int = 1) -> Answers:
    """Load an ONNX model with onnxruntime on the CPU.

    Raises:
        UserError: onnxruntime is not there.
    """
    runtime = load_extra("onnxruntime", "export", "format=onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


# ---- weights --------------------------------------------------------------------------------------------------------


def write_safetensors(trained: TrainedRun, folder: Path, description: Mapping[str, Any]) -> None:
    """Write the weights as `model.safetensors`, and `convatlas.json` with the description and the section `model`."""
    _write_weights(trained.net.state_dict(), folder / "model.safetensors", trained.config.about.title)
    write_json(folder / METADATA, {**description, "model": trained.config.model})


def write_timm(trained: TrainedRun, folder: Path, description: Mapping[str, Any], architecture: str) -> None:
    """Write weights and `config.json`, which `timm.create_model("local-dir:<folder>", pretrained=True)` takes.

    Args:
        trained: the run.
        folder: that the files go to.
        description: of `convatlas.exporting.nets.describe`.
        architecture: timm's name of the net; for a net of this project that of `convatlas.timm_models`.
    """
    options = {key: value for key, value in trained.config.model.items() if key not in NOT_TIMMS}
    classes, channels = len(description["classes"]), trained.config.data.in_channels
    _write_weights(trained.net.state_dict(), folder / "model.safetensors", trained.config.about.title)
    config = {
        "architecture": architecture,
        "num_classes": classes,
        "model_args": options | {"num_classes": classes, "in_chans": channels},
        "pretrained_cfg": {
            "input_size": description["input_size"],
            "fixed_input_size": "image_size" in options,  # timm then gives the net its size, which others do not take
            "num_classes": classes,
            "mean": description["mean"],
            "std": description["std"],
            "interpolation": "bilinear",
            "crop_pct": description["test_crop"],
            "crop_mode": {"centre": "center", "letterbox": "border"}.get(description["fitted"], "squash"),
            "label_names": description["classes"],
        },
    }
    write_json(folder / "config.json", config)


def _write_weights(state: Mapping[str, torch.Tensor], path: Path, title: str) -> None:
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}  # none share memory
    save_file(tensors, path, metadata={"format": "pt", "title": title})


# ---- errors ---------------------------------------------------------------------------------------------------------


@contextmanager
def explained(trained: TrainedRun, format_name: str) -> Iterator[None]:
    """Turn whatever an exporter raises into a sentence with its reason, and keep its remarks from the user."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{trained.config.about.title} cannot be written as {format_name} ({_reason(error)}); take another format."
        ) from error


def _reason(error: BaseException | None) -> str:
    """Return the first line of the innermost error that says something."""
    lines = []
    while error is not None:
        lines += [line for line in str(error).splitlines()[:1] if line]
        error = error.__cause__ or error.__context__
    reason = lines[-1] if lines else "torch gives no reason"
    return re.sub(r"\x1b\[[0-9;]*m", "", reason).rstrip(".")[:200]
