"""Metrics on their way to the store: a thread sends them, so that no step waits for a slow or absent store."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Metric

__all__ = ["Sender"]


class Sender:
    """Sends what it is given, all that waits in one request; what the store refuses goes with the next.

    Args:
        send: hands metrics to the store, or raises.
        on_failure: called with the first of several failures in a row.
    """

    def __init__(self, send: Callable[[list[Metric]], None], on_failure: Callable[[Exception], None]) -> None:
        self._send = send
        self._on_failure = on_failure
        self._waiting: list[Metric] = []
        self._something_new = False
        self._closed = False
        self._state = Condition()
        self._thread = Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def put(self, metrics: list[Metric]) -> None:
        """Take metrics and return at once."""
        with self._state:
            self._waiting += metrics
            self._something_new = True
            self._state.notify()

    def close(self) -> list[Metric]:
        """Try a last time to send what waits; returns what the store did not take."""
        with self._state:
            self._closed = True
            self._state.notify()
        self._thread.join()
        return self._waiting

    def _work(self) -> None:
        failing = closing = False
        while not closing:
            with self._state:
                self._state.wait_for(lambda: self._something_new or self._closed)
                closing = self._closed
                self._something_new = False
                batch = list(self._waiting)
            if not batch:
                continue
            try:
                self._send(batch)
            except Exception as failure:
                if not failing:
                    self._on_failure(failure)
                failing = True
            else:
                failing = False
                with self._state:
                    del self._waiting[: len(batch)]
