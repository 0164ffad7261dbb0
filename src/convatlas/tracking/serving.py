"""The net as a model that MLflow serves; see `convatlas.models.served`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from convatlas.core.config import RunConfig
from convatlas.models.build import build_model
from convatlas.models.served import ServedNet
from convatlas.models.weights import load_net

if TYPE_CHECKING:
    from convatlas.data.card import Card


def log_served_model(run_id: str, config: RunConfig, card: Card, folder: Path, packages: Mapping[str, str]) -> str:
    """Log the best net of a finished seed with signature and input example; return its address in MLflow.

    It is a `torch.export` program, which needs no convatlas; classes, normalisation and input size are its metadata.

    Detectors return lists of different lengths, which MLflow's tensor signatures cannot describe; they are not logged,
    and the address is empty.

    Args:
        run_id: of the seed's run.
        config: the run.
        card: of its data, with their mean and standard deviation.
        folder: of the seed.
        packages: the versions it was trained with.
    """
    import mlflow
    import mlflow.pytorch
    from mlflow.models import infer_signature

    net = build_model(config.model)
    load_net(net, folder / "best.ckpt")
    example = torch.rand(2, config.data.in_channels, config.data.image_size, config.data.image_size)
    with torch.no_grad():
        if not isinstance(net.eval()(example), torch.Tensor):
            return ""
    served = ServedNet(net, *card.normalisation(config.data)).eval()
    with torch.no_grad():
        answer = served(example).numpy()
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pytorch.log_model(
            served,
            name="model",
            signature=infer_signature(example.numpy(), answer),
            input_example=example.numpy(),
            metadata=card.for_programs(config.data, config.recipe.test_crop),
            pip_requirements=[f"torch=={packages['torch'].split('+')[0]}", f"numpy=={packages['numpy']}"],
            validate_serving_input=False,  # it would load the net again, a second or more; tests/tracking serves one
        )
    return str(logged.model_uri)
