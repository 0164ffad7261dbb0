"""A process that has imported everything, and runs commands in forks of it: a start takes milliseconds, not seconds.

Run as a script it reads a line of JSON a command, and answers with the number of the fork, then with its exit status.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

IMPORTS = (
    *("alembic.command", "matplotlib.backends.backend_agg", "opentelemetry.sdk.metrics", "pyarrow.parquet"),
    *("sqlalchemy.dialects.sqlite", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_workspace_store"),
    *("convatlas.core.cli", "convatlas.training.run", "convatlas.tracking.tracker", "convatlas.tasks.classification"),
    "convatlas.models.classification.lenet",
)


class Forks:
    """Starts the process, and commands in forks of it."""

    def __enter__(self) -> Forks:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def start(self, module: str, arguments: Sequence[str], folder: Path, log: Path) -> int:
        """Start `python -m <module> <arguments>` in a folder; returns the number of its process."""
        assert self._server.stdin is not None
        command = {"module": module, "arguments": list(arguments), "folder": str(folder), "log": str(log)}
        print(json.dumps(command), file=self._server.stdin, flush=True)
        return self._answer()

    def status(self) -> int:
        """Wait for the end of the command that was started last; returns its exit status, `-9` after SIGKILL."""
        return self._answer()

    def _answer(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


def serve() -> None:
    """Run one command after the other."""
    for name in IMPORTS:
        __import__(name)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            run(json.loads(line))
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def run(command: dict[str, Any]) -> None:
    """Run one command in this process, which ends with it."""
    status: int | str | None = 1
    try:
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(command["folder"])
        sys.argv = [command["module"], *command["arguments"]]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        runpy.run_module(command["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:  # while the entry point itself is imported
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    serve()
