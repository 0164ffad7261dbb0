"""`python -m convatlas.ui [port=5000]`: opens the runs in MLflow."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

from pydantic import Field

from convatlas.core.cli import read_options, run
from convatlas.core.config import Section
from convatlas.core.errors import UserError
from convatlas.tracking.store import connect, tracking_uri


class Options(Section):
    """What the command line may say."""

    port: Annotated[int, Field(ge=1, le=65535)] = 5000
    host: str = "127.0.0.1"


def main() -> None:
    """Say where to look, and become MLflow's server."""
    options = read_options(Options, sys.argv[1:])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            raise UserError(
                f"Port {options.port} is in use or not allowed; choose another: make ui PORT=5001."
            ) from error
    uri = tracking_uri(None)
    client = connect(uri)
    base = f"http://{options.host}:{options.port}"
    for experiment in client.search_experiments():
        if experiment.name != "Default":
            view = "runs?compareRunsMode=CHART&workflowType=machine_learning"
            print(f"{experiment.name}: {base}/#/experiments/{experiment.experiment_id}/{view}")
    print("Stop with Ctrl-C.", flush=True)
    command = ["server", "--backend-store-uri", uri, "--host", options.host, "--port", str(options.port)]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *command, "--workers", "1"])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    run(main)
