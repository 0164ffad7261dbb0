"""Servers that tests start on this machine and stop again: PostgreSQL, and MLflow on a database."""

from __future__ import annotations

import base64
import http.client
import http.server
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def postgres_programs() -> Path | None:
    """Return the folder with initdb and postgres of the newest installed version; None if there is none."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.environ["PATH"].split(os.pathsep))]
    needed = ("initdb", "postgres", "pg_isready")
    found = [folder for folder in folders if all((folder / name).exists() for name in needed)]
    return max(found, default=None, key=lambda folder: folder.parent.name)


def postgres_user() -> dict[str, Any] | None:
    """Return as whom to start PostgreSQL, which refuses root; None if there is nobody."""
    if os.geteuid() != 0:
        return {}
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        return None
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


@contextmanager
def postgres() -> Iterator[str]:
    """Start a PostgreSQL with an empty database and yield its address."""
    programs, account = postgres_programs(), postgres_user()
    assert programs is not None
    assert account is not None
    folder = Path(tempfile.mkdtemp(prefix="convatlas-postgres-"))
    if account:
        os.chown(folder, account["user"], account["group"])
    try:
        make = [programs / "initdb", "--pgdata", folder / "data", "--username", "convatlas", "--auth", "trust"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, **account)
        port = free_port()
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", f"unix_socket_directories={folder}"]
        command = [programs / "postgres", "-D", folder / "data", "-p", str(port), *options]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **account)
        try:
            ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
            wait_until(lambda: subprocess.run(ready, check=False, capture_output=True).returncode == 0, server)
            yield f"postgresql+psycopg2://convatlas@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)
    finally:
        shutil.rmtree(folder)


@contextmanager
def mlflow_server(database: str, folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start MLflow's server on a database; yields its address and its process, which may be killed."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--workers", "1"),
        *("--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)),
        *options,
    ]
    address = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        wait_until(lambda: answers(f"{address}/health"), server)
        yield address, server
    finally:
        stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    """Kill a server with the processes it started."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(address: str) -> bool:
    """Say whether somebody answers there."""
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_until(ready: Any, server: subprocess.Popen[bytes], seconds: float = 180) -> None:
    """Wait for a server that is starting."""
    end = time.monotonic() + seconds
    while not ready():
        assert server.poll() is None, f"{server.args} ended with {server.returncode}"
        assert time.monotonic() < end, f"{server.args} does not answer"
        time.sleep(0.2)


@contextmanager
def with_password(address: str, user: str, password: str) -> Iterator[tuple[str, list[bool]]]:
    """Put a door before a server that asks for a password; yields its address and, by request, whether it was right."""
    port, wanted = free_port(), "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    asked: list[bool] = []

    class Door(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(self.headers.get("Authorization") == wanted)
            if not asked[-1]:
                self.answer(401, {"WWW-Authenticate": "Basic"}, b"")
                return
            inner = http.client.HTTPConnection(address.removeprefix("http://"))
            left_out = ("authorization", "host", "connection")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in left_out}
            inner.request(self.command, self.path, body, headers)
            answer = inner.getresponse()
            self.answer(answer.status, {"Content-Type": answer.headers["Content-Type"]}, answer.read())

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the names are http.server's

        def answer(self, status: int, headers: dict[str, Any], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Door)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{port}", asked
    finally:
        server.shutdown()
        server.server_close()
