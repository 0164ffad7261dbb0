"""Dockerfile and compose.yaml: what can be checked without an engine, and the images where there is a builder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from helpers import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def stages() -> dict[str, tuple[str, str]]:
    """Return the Dockerfile's stages by name: what each builds on, and its instructions."""
    parts = re.split(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {name: (on, body) for on, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def given(command: list[str]) -> dict[str, str]:
    """Return the server's options with the values that compose puts in when nothing is set."""
    text = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in command]
    return dict(word.split("=", 1) for word in text)


@pytest.mark.parametrize("target", ["cpu", "cuda", "server"])
def test_no_container_runs_as_root(target):
    body = ""
    on = target
    while on in stages():
        on, part = stages()[on]
        body = part + body
    assert re.findall(r"^USER (\S+)", body, flags=re.MULTILINE)[-1] == "1000"


def test_every_base_image_is_pinned_to_a_release():
    bases = re.findall(r"^ARG PYTHON=(\S+)", DOCKERFILE, flags=re.MULTILINE)
    images = bases + [service["image"] for service in SERVICES.values() if "image" in service]
    assert len(images) == 4
    assert all(re.search(r":[\w.-]*\d+[.-]\d+[\w.-]*$", image) for image in images), images
    assert {on for on, _ in stages().values()} == {"${PYTHON}", "base"}


def test_the_server_has_the_mlflow_of_the_lock():
    (locked,) = re.findall(r"^mlflow==(\S+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    assert f"mlflow=={locked} " in stages()["server"][1]


def test_services_build_targets_that_exist_and_wait_for_services_that_tell_they_are_ready():
    for service in SERVICES.values():
        assert "image" in service or service["build"]["target"] in stages()
        for other, wait in service.get("depends_on", {}).items():
            assert other in SERVICES
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other]
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]


def test_nothing_is_open_to_other_machines():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:5000:5000"]


def test_workers_know_no_password():
    assert SERVICES["worker"]["environment"] == {"MLFLOW_TRACKING_URI": "http://server:5000"}


@pytest.mark.slow
def test_the_server_takes_its_options_and_answers_by_the_names_compose_gives_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "tracking")
    from servers import mlflow_server

    options = given(SERVICES["server"]["command"])
    known = subprocess.run([sys.executable, "-m", "mlflow", "server", "--help"], capture_output=True, check=True)
    assert all(option in known.stdout.decode() for option in options)
    hosts = options["--allowed-hosts"]
    with mlflow_server(f"sqlite:///{tmp_path / 'db'}", tmp_path, "--allowed-hosts", hosts) as (address, _):
        port = address.rpartition(":")[2]
        search = f"{address}/api/2.0/mlflow/experiments/search?max_results=1"
        for host in ("server:5000", f"localhost:{port}", f"127.0.0.1:{port}"):
            with urlopen(Request(search, headers={"Host": host}), timeout=30) as answer:
                assert answer.status == 200
        with pytest.raises(HTTPError, match="403"):
            urlopen(Request(search, headers={"Host": "elsewhere.example"}), timeout=30)


@pytest.fixture(scope="module")
def buildah(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """Return a function that runs buildah on a store of its own, in which Debian has the name of the base image.

    So no registry of images is needed, and no daemon; packages come over the network, by the certificate that PIP_CERT
    names, if it does.
    """
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing or os.getuid():
        pytest.skip(f"needs {' and '.join(missing) or 'root'}: apt-get install buildah debootstrap")
    folder = tmp_path_factory.mktemp("images")
    store = ["buildah", "--root", str(folder / "root"), "--runroot", str(folder / "run")]

    def run(*words: str | Path, seconds: float = 1800) -> str:
        done = subprocess.run([*store, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout.strip()

    base = folder / "debian"
    packages = "python3,python3-venv,python3-pip,ca-certificates"
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(base)]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    (base / "usr/bin/python").symlink_to("python3")
    for mark in base.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):  # the image of the name has none
        mark.unlink()
    (name,) = re.findall(r"^ARG PYTHON=(\S+)", DOCKERFILE, flags=re.MULTILINE)
    container = run("from", "scratch")
    run("copy", container, base, "/")
    if certificate := os.environ.get("PIP_CERT"):
        run("copy", "--chmod", "644", container, certificate, "/etc/ssl/given.pem")
        run("config", "--env", "PIP_CERT=/etc/ssl/given.pem", "--env", "SSL_CERT_FILE=/etc/ssl/given.pem", container)
    run("commit", "--rm", container, f"docker.io/library/{name}")
    yield run
    run("rmi", "--all", "--force")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(
    ("target", "command", "printed"),
    [
        ("server", "mlflow --version", "mlflow, version"),
        ("cpu", "convatlas models 'fractal*'", "fractalnet"),
    ],
)
def test_the_dockerfile_builds(buildah, target, command, printed):
    """Needs gigabytes from the network, and minutes: `pytest -m network tests/test_containers.py`."""
    how = ["--isolation", "chroot", "--pull-never", "--target", target]
    buildah("bud", *how, "--tag", target, "--file", "Dockerfile", ".")
    container = buildah("from", "--pull-never", f"localhost/{target}")
    assert printed in buildah("run", "--isolation", "chroot", container, "--", "sh", "-c", command)
    assert buildah("run", "--isolation", "chroot", container, "--", "id", "-u") == "1000"
