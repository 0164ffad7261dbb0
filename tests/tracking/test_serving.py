"""The logged model answers for pictures of any size, where convatlas is not and behind `mlflow models serve`."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from convatlas.data.decoding import decode
from convatlas.data.squares import Geometry
from convatlas.exporting.nets import served_net
from convatlas.tasks.base import Task
from convatlas.tasks.predicting import fitted_image
from convatlas.training.run import train
from convatlas.training.trained import load_run
from helpers import TASKS_DATA, source_options

pytestmark = pytest.mark.slow


@pytest.fixture
def address(compose, tmp_path) -> Iterator[str]:
    """Train and register a net, and serve it."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = ("tracking=mlflow", f"tracking.uri={uri}", "tracking.register_as=digits", "tracking.alias=champion")
    train(compose(*options), strict=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["models", "serve", "-m", "models:/digits@champion", "--env-manager", "local", "-p", str(port)]
    scripts = Path(sys.executable).parent  # MLflow starts uvicorn by its name
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urlopen(f"{address}/ping").close()
                break
            except (URLError, ConnectionError):
                time.sleep(0.5)
        yield f"{address}/invocations"
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


def ask(address: str, body: dict[str, Any]) -> tuple[int, str]:
    """Send a request and return status and answer."""
    try:
        with urlopen(Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def png(pixels: np.ndarray) -> bytes:
    """Return a picture as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """Return the Python of an environment with all packages of this one, but not convatlas.

    It is a real environment of its own. Its path goes on to this one's packages, so that none is installed twice; the
    files there that would add to the path, and so the one that makes convatlas importable, have no effect here.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "packages_of_another.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin" / "python"


def outside(python: Path, *words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder of its own, and let nothing add to its path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [python, *words], cwd=folder, capture_output=True, text=True, check=False, env=environment, timeout=300
    )


def test_convatlas_is_not_there(elsewhere, tmp_path):
    assert outside(elsewhere, "-c", "import mlflow, torch", folder=tmp_path).returncode == 0
    assert "No module named 'convatlas'" in outside(elsewhere, "-c", "import convatlas", folder=tmp_path).stderr


ASK = """
import json
import sys

import mlflow
import numpy as np

asked = json.load(open("asked.json"))
asked[2] = np.array(asked[2], dtype=np.uint8)
model = mlflow.pyfunc.load_model(sys.argv[1])
about = model.metadata.metadata
json.dump([model.predict({"image": asked}), about["classes"], about["input_size"]], open("answers.json", "w"))
"""
NETS = {
    "lenet5_modern": "classification",
    "unet_small": "segmentation",
    "saunet_small": "segmentation",  # takes the edges of the image, too
    "retinanet_small": "detection",
}


@pytest.mark.parametrize("net", NETS)
def test_the_logged_model_answers_where_convatlas_is_not(compose, prepared, elsewhere, tmp_path, net):
    task, uri = NETS[net], f"sqlite:///{tmp_path / 'mlflow.db'}"
    data = prepared[TASKS_DATA[task]]
    options = [f"data={data.name}", f"data.prepared={data}", *source_options(data), f"model={net}", "recipe.epochs=1"]
    options += (
        [] if task == "classification" else [f"recipe={task}", "recipe.batch_size=16", "trainer.limit_batches=10"]
    )
    options += ["data.in_channels=2"] if net == "saunet_small" else []
    (folder,) = train(compose("tracking=mlflow", f"tracking.uri={uri}", *options), strict=True)
    client = mlflow.MlflowClient(uri)
    (logged,) = client.search_logged_models([e.experiment_id for e in client.search_experiments()])
    place = mlflow.artifacts.download_artifacts(logged.model_uri, tracking_uri=uri)
    trained = load_run(folder)

    random = np.random.default_rng(0)
    wide = random.integers(0, 256, (90, 150, 3), dtype=np.uint8)
    small = random.integers(0, 256, (20, 17), dtype=np.uint8)
    shape = [trained.config.data.in_channels, *[trained.config.data.image_size] * 2]
    tensor = random.random(shape, dtype=np.float32)
    asked = [base64.b64encode(png(wide)).decode(), wide.tolist(), small.tolist(), tensor.tolist()]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    (tmp_path / "ask.py").write_text(ASK)
    done = outside(elsewhere, "ask.py", place, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    answers, classes, size = json.loads((tmp_path / "answers.json").read_text())
    assert classes == list(trained.card.classes)
    assert size == shape

    assert answers[0] == answers[1]
    for pixels, answer in ((wide, answers[1]), (small, answers[2])):
        decoded = decode(png(pixels), trained.card.image_shape[0], percentiles=trained.card.percentiles)
        fitted, geometry = fitted_image(decoded.pixels, trained.config, trained.card)
        with torch.inference_mode():
            (found,) = trained.task().answers(fitted, trained.card)
        compare(trained.task(), answer, found, geometry, decoded.size)
    with torch.inference_mode():
        served = served_net(trained)(torch.from_numpy(tensor)[None])
    found = dict(zip(("boxes", "scores", "labels"), served, strict=True)) if task == "detection" else served[0]
    compare(trained.task(), answers[3], found, Geometry((1, 1), (0, 0)), (shape[1], shape[2]))


def compare(own: Task, answer: Any, found: Any, geometry: Geometry, size: tuple[int, int]) -> None:
    """Fail unless a served answer says what the task reads in what its net found."""
    task, (row, drawn) = own.config.data.task, own.read(found, geometry, size)
    if task == "classification":
        assert answer["prediction"] == row["prediction"]
        np.testing.assert_allclose(answer["probabilities"], found.numpy(), atol=1e-5)
    elif task == "segmentation":
        assert np.mean(np.array(answer["mask"]) == drawn.numpy()) > 0.999  # rounding may turn a pixel between classes
        assert sum(answer["pixels"].values()) == drawn.numel()
    else:
        assert len(answer["objects"]) == len(found["scores"]) > 0
        np.testing.assert_allclose([each["score"] for each in answer["objects"]], found["scores"], atol=1e-5)
        listed = [each["box"] for each in answer["objects"]][: row["count"]]
        np.testing.assert_allclose(np.reshape(listed, (-1, 4)), drawn.reshape(-1, 4), atol=1e-2)


def test_a_served_net_answers_for_pictures_and_tensors_and_refuses_what_is_neither(address):
    picture = base64.b64encode(png(np.full((40, 60), 200, dtype=np.uint8))).decode()
    bodies: list[dict[str, Any]] = [
        {"inputs": {"image": [picture, picture]}},
        {"dataframe_records": [{"image": picture}, {"image": np.full((9, 9), 200).tolist()}]},
        {"inputs": {"image": np.zeros((2, 1, 32, 32)).tolist()}},
    ]
    for body in bodies:
        status, text = ask(address, body)
        assert status == 200, text
        predictions = json.loads(text)["predictions"]
        assert len(predictions) == 2
        assert np.allclose([np.sum(each["probabilities"]) for each in predictions], 1, atol=1e-4)
    for wrong, sentence in (
        (np.zeros((2, 32, 32)).tolist(), "of the net's own shape (1, 32, 32), but this one has (2, 32, 32)"),
        ("no picture", "it is text, but not base64 of an image file"),
    ):
        status, text = ask(address, {"dataframe_records": [{"image": wrong}]})
        assert status == 400, text
        assert "Image 1 of 1: " in text
        assert sentence in text
