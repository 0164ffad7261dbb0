"""`python -m convatlas.ui [port=5000] [host=127.0.0.1]`: opens the runs in MLflow."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from typing import Annotated

from pydantic import Field

from convatlas.core.cli import read_options, run
from convatlas.core.config import Section
from convatlas.core.errors import UserError
from convatlas.core.passwords import split_address
from convatlas.tracking.store import ANOTHER_STORE, connect, tracking_uri
from convatlas.tracking.view import address

LOCAL = {"127.0.0.1", "::1", "localhost"}
EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - what is compared with
# The names by which MLflow's server accepts to be called by default: this machine and private networks.
DEFAULT_NAMES = ("localhost", "127.0.0.1", "[[]::1]", "10.*", "192.168.*", *(f"172.{n}.*" for n in range(16, 32)))


class Options(Section):
    """What the command line may say."""

    port: Annotated[int, Field(ge=1, le=65535)] = 5000
    host: str = "127.0.0.1"
    """The address to listen at; 0.0.0.0 lets other machines in, without asking for a password."""


def main() -> None:
    """Print where to look, and become MLflow's server unless the runs are on one already."""
    options = read_options(Options, sys.argv[1:])
    uri = tracking_uri(None)
    on_server = uri.startswith("http")
    if not on_server:
        check_port(options)
    try:
        client = connect(uri, read_only=True)
    except UserError as error:
        raise UserError(str(error).replace(ANOTHER_STORE, "name another one by MLFLOW_TRACKING_URI")) from error
    name = socket.gethostname() if options.host in EVERYWHERE else options.host
    base = split_address(uri).shown.rstrip("/") if on_server else f"http://{_bracketed(name)}:{options.port}"
    for experiment in client.search_experiments():
        if experiment.name != "Default":
            for mode in ("TABLE", "CHART"):
                print(f"{experiment.name}, {mode.lower()}: {address(base, experiment.experiment_id, mode)}")
    if on_server:
        return
    print("Stop with Ctrl-C.", flush=True)
    command = ["mlflow", "server", "--host", options.host, "--port", str(options.port), "--workers", "1"]
    # By the environment, since everyone on the machine sees the arguments of a process, and the password in them.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    if options.host not in LOCAL:
        os.environ.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", ",".join(allowed_names(name)))
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606 - no shell is wanted


def check_port(options: Options) -> None:
    """Try to listen.

    Raises:
        UserError: the port is taken, or this machine has no such address.
    """
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((options.host, options.port))
    except socket.gaierror as error:
        raise UserError(f"host={options.host} is no address of this machine; leave it out, or try 0.0.0.0.") from error
    except OSError as error:
        raise UserError(
            f"Port {options.port} of {options.host} cannot be used ({error.strerror}); choose another: "
            "make ui PORT=5001."
        ) from error


def allowed_names(name: str) -> list[str]:
    """Return the names, with and without a port, by which a browser may call a server that other machines reach."""
    own = {name, socket.gethostname(), socket.getfqdn()}
    with suppress(OSError):  # the name is in no table of names
        own |= {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)}
    return [pattern for each in (*DEFAULT_NAMES, *sorted(own)) for pattern in (each, f"{each}:*")]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    run(main)
