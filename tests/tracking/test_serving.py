"""`mlflow models serve` answers with the registered net, and refuses images of a wrong shape."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import mlflow
import numpy as np
import pytest
import torch

from convatlas.exporting.nets import served_net
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


def ask(address: str, images: np.ndarray) -> tuple[int, str]:
    """Send images and return status and answer."""
    body = json.dumps({"inputs": images.tolist()}).encode()
    try:
        with urlopen(Request(address, body, {"Content-Type": "application/json"})) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


WITHOUT_CONVATLAS = """
import sys

sys.modules["convatlas"] = None  # importing it fails from here on, as where it is not installed
import mlflow
import numpy as np

model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(np.load(sys.argv[2]))
np.save(sys.argv[3], answer)
print(model.metadata.metadata["classes"][answer[0].argmax()])
assert not [name for name in sys.modules if name.startswith("convatlas.")]
"""


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_the_logged_model_answers_where_convatlas_is_not(compose, prepared, tmp_path, task):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    data = prepared[TASKS_DATA[task]]
    nets = {"classification": [], "segmentation": ["model=unet_small", "recipe=segmentation"]}
    options = [f"data={data.name}", f"data.prepared={data}", *source_options(data), *nets[task], "recipe.epochs=1"]
    (folder,) = train(compose("tracking=mlflow", f"tracking.uri={uri}", *options), strict=True)
    client = mlflow.MlflowClient(uri)
    (logged,) = client.search_logged_models([e.experiment_id for e in client.search_experiments()])
    place = mlflow.artifacts.download_artifacts(logged.model_uri, tracking_uri=uri)
    card = load_run(folder).card
    (channels, side, _) = card.for_programs(load_run(folder).config.data, 1.0)["input_size"]
    images = np.random.default_rng(0).random((3, channels, side, side), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "ask.py").write_text(WITHOUT_CONVATLAS)
    command = [sys.executable, "ask.py", place, "images.npy", "answer.npy"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = served_net(load_run(folder))(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), expected, atol=1e-5)
    if task == "classification":
        assert done.stdout.split()[-1] == card.classes[expected[0].argmax()]


def test_a_served_net_answers_and_refuses_a_wrong_shape(address):
    status, text = ask(address, np.zeros((3, 1, 32, 32), dtype=np.float32))
    assert status == 200, text
    assert np.allclose(np.sum(json.loads(text)["predictions"], axis=1), 1, atol=1e-4)
    status, text = ask(address, np.zeros((3, 2, 32, 32), dtype=np.float32))
    assert status == 400, text
