"""MLflow's own pages in headless Chromium: a person finds the variant, its seeds and its curves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from convatlas.training.run import train
from helpers import CHROMIUM

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM.exists(), reason="Chromium is not installed")]


@pytest.fixture
def served(compose, tmp_path) -> Iterator[str]:
    """Train two seeds, serve them as `make ui` does, and return the address it prints."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = ("tracking=mlflow", f"tracking.uri={uri}", "tracking.log_model=false", "tracking.system_metrics=false")
    train(compose(*options, seeds=[0, 1]), strict=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "convatlas.ui", f"port={port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        start_new_session=True,
    )
    try:
        line = server.stdout.readline()
        for _ in range(240):
            try:
                urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except (URLError, ConnectionError):
                time.sleep(0.5)
        yield line.split(": ", 1)[1].strip()
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


def test_a_person_finds_variants_by_score_with_their_costs(served, browser):
    page = browser.new_page(viewport={"width": 1600, "height": 1200})
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(served)
    for head in ("test/accuracy", "test_std/accuracy", "cost/parameters", "cost/macs", "time/train_seconds"):
        page.get_by_role("columnheader", name=head).first.wait_for(timeout=60_000)
    page.get_by_text("1 matching run").wait_for(timeout=60_000)  # the variant, neither its seeds nor the report
    page.goto(served.replace("TABLE", "CHART"))
    page.get_by_text("Score and cost").first.wait_for(timeout=60_000)
    page.locator(".js-plotly-plot").filter(has_text="cost/macs").first.wait_for(timeout=60_000)
    assert failures == []
