"""The net as a model that MLflow serves: pictures in, answers out; see `convatlas.data.served`."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from convatlas.core.config import RunConfig
from convatlas.data import served
from convatlas.models.build import build_model
from convatlas.models.served import SERVED, traced
from convatlas.models.weights import load_net

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from convatlas.data.card import Card

PACKAGE = "convatlas_served"
"""Of the files that a model carries along; not `convatlas`, which may be installed beside it."""


def log_served_model(run_id: str, config: RunConfig, card: Card, folder: Path, packages: Mapping[str, str]) -> str:
    """Log the best net of a finished seed with signature, classes and preprocessing; return its address.

    It is a `torch.export` program in a model of MLflow's that needs no convatlas. Classes, normalisation and input size
    are its metadata, too.

    Args:
        run_id: of the seed's run.
        config: the run.
        card: of its data, with their mean and standard deviation.
        folder: of the seed.
        packages: the versions it was trained with.
    """
    import mlflow

    net = build_model(config.model)
    load_net(net, folder / "best.ckpt")
    net.eval()
    wrapped = SERVED[config.data.task](net, *card.normalisation(config.data))
    about = card.for_programs(config.data, config.recipe.test_crop)
    needed = ["torch", "numpy", "pillow", *(["torchvision"] if wrapped.one_at_a_time else [])]
    needed += ["scikit-image"] if card.has_canny(config.data) else []
    with TemporaryDirectory() as temporary, warnings.catch_warnings(), mlflow.start_run(run_id=run_id):
        model, package = Path(temporary, "model"), Path(temporary, PACKAGE)
        model.mkdir()
        package.mkdir()
        torch.export.save(traced(wrapped.eval(), about["input_size"]), model / served.PROGRAM)
        (model / served.DESCRIPTION).write_text(json.dumps(about | {"card": card.for_fitting()}), encoding="utf-8")
        (package / "__init__.py").touch()
        for name in served.FILES:
            shutil.copy(Path(served.__file__).with_name(name), package)
        warnings.simplefilter("ignore")  # an input example would have the net loaded and run once more
        logged = mlflow.pyfunc.log_model(
            name="model",
            loader_module=f"{PACKAGE}.{Path(served.__file__).stem}",
            data_path=str(model),
            code_paths=[str(package)],
            signature=_signature(config.data.task),
            metadata=about,
            pip_requirements=[_pinned(name, packages) for name in needed],
        )
    return str(logged.model_uri)


def _signature(task: str) -> ModelSignature:
    """Return what a model takes, and what it answers for each picture."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, Property, Schema

    number = DataType.double
    found = Object([Property("class", DataType.string), Property("score", number), Property("box", Array(number))])
    outputs = {
        "classification": [
            ColSpec(DataType.string, "prediction"),
            ColSpec(number, "confidence"),
            ColSpec(Array(number), "probabilities"),
        ],
        "segmentation": [ColSpec(AnyType(), "pixels"), ColSpec(Array(Array(DataType.long)), "mask")],
        "detection": [ColSpec(Array(found), "objects")],
    }
    return ModelSignature(Schema([ColSpec(AnyType(), served.COLUMN)]), Schema([*outputs[task]]))


def _pinned(name: str, packages: Mapping[str, str]) -> str:
    """Name a package in the version that a run was trained with, where it is known."""
    return f"{name}=={packages[name].split('+')[0]}" if name in packages else name
