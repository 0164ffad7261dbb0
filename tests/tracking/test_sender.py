"""Metrics on their way to the store: no epoch waits for it, and none is lost in between."""

from __future__ import annotations

import time
from threading import Event
from typing import Any

from convatlas.tracking.sender import Sender


class Store:
    """A store that can be away or slow."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.tries = 0
        self.away = False
        self.may_answer = Event()
        self.may_answer.set()

    def send(self, metrics: list[Any]) -> None:
        self.tries += 1
        self.may_answer.wait(10)
        if self.away:
            raise ConnectionError("nobody there")
        self.taken += metrics


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_store_that_does_not_answer_holds_nobody_up():
    store, failures = Store(), []
    store.may_answer.clear()
    sender = Sender(store.send, failures.append)
    for number in range(100):
        sender.put([number])
    assert store.taken == []  # the store has not answered yet, and all 100 calls have come back
    store.may_answer.set()
    assert sender.close() == []
    assert store.taken == [*range(100)]
    assert store.tries <= 3  # what waits goes in one request
    assert failures == []


def test_what_a_store_refused_is_sent_when_it_is_back_and_the_failure_is_told_once():
    store, failures = Store(), []
    store.away = True
    sender = Sender(store.send, failures.append)
    sender.put(["first"])
    wait_for(lambda: store.tries == 1)
    sender.put(["second"])
    wait_for(lambda: store.tries == 2)
    store.away = False
    sender.put(["third"])
    assert sender.close() == []
    assert store.taken == ["first", "second", "third"]
    assert [str(failure) for failure in failures] == ["nobody there"]


def test_what_the_store_did_not_take_to_the_end_comes_back():
    store, failures = Store(), []
    store.away = True
    sender = Sender(store.send, failures.append)
    sender.put(["first"])
    sender.put(["second"])
    assert sender.close() == ["first", "second"]
    assert sender.close() == ["first", "second"]
    assert len(failures) == 1
