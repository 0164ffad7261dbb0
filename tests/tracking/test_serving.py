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

import numpy as np
import pytest

from convatlas.training.run import train

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


def test_a_served_net_answers_and_refuses_a_wrong_shape(address):
    status, text = ask(address, np.zeros((3, 1, 32, 32), dtype=np.float32))
    assert status == 200, text
    assert np.allclose(np.sum(json.loads(text)["predictions"], axis=1), 1, atol=1e-4)
    status, text = ask(address, np.zeros((3, 2, 32, 32), dtype=np.float32))
    assert status == 400, text
