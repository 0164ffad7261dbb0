"""Seeds of one run side by side: how many, what a failing one does to the others, and what is printed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from convatlas.core.errors import UserError
from convatlas.core.processes import stop
from convatlas.tracking.tracker import SeedTracker, VariantTracker
from convatlas.training import side_by_side
from convatlas.training.run import run_identity
from convatlas.training.side_by_side import SideBySide, seeds_at_once


class Noted(VariantTracker, SeedTracker):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.notes: list[tuple] = []

    def start_seed(self, seed: int, work: Path) -> SeedTracker:
        self.notes.append(("start", seed, os.getpid()))
        return self

    def end(self, status: str) -> None:
        self.notes.append(("end", status))


def train(seed: int, tracker: VariantTracker) -> Path:
    """Stand for a training: what happens depends on the seed."""
    run = tracker.start_seed(seed, Path("work"))
    if seed == 1:
        raise UserError("seed 1 cannot be trained; choose another.")
    if seed == 2:
        raise KeyError("a bug")
    if seed == 3:
        os._exit(9)
    run.end("FINISHED")
    return Path(f"seed={seed}")


@pytest.mark.parametrize(
    ("seeds", "kind", "message"),
    [
        ((0, 1, 4), UserError, r"^seed 1 cannot be trained; choose another\.$"),
        ((2, 1, 0), RuntimeError, "KeyError: 'a bug'"),
        ((3, 0, 4), UserError, "seed 3 was ended from outside .* trainer.seeds_at_once=1"),
    ],
)
def test_of_seeds_that_fail_the_first_is_reported_and_the_others_finish(seeds, kind, message):
    tracker = Noted()
    with SideBySide(train, seeds, 2) as processes, pytest.raises(kind, match=message) as raised:
        processes.train(tracker)
    assert (kind is UserError) or 'raise KeyError("a bug")' in str(raised.value.__cause__)
    assert {note for note in tracker.notes if note[0] == "start"} == {("start", seed, os.getpid()) for seed in seeds}
    assert tracker.notes.count(("end", "FINISHED")) == len({0, 4} & set(seeds))
    assert tracker.notes.count(("end", "KILLED")) == (3 in seeds)


def test_a_signal_while_the_processes_are_made_leaves_none_behind(monkeypatch):
    context = multiprocessing.get_context("fork")
    start, before = context.Process.start, signal.signal(signal.SIGTERM, stop)

    def started(process):
        start(process)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(context.Process, "start", started)
    try:
        with pytest.raises(SystemExit, match="143"):
            SideBySide(train, (0, 4), 2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not multiprocessing.active_children()


def test_folders_come_in_the_order_of_the_seeds():
    with SideBySide(train, (6, 0, 5, 4), 2) as processes:
        processes.start()
        assert processes.train(Noted()) == [Path(f"seed={seed}") for seed in (6, 0, 5, 4)]


def test_as_many_seeds_as_there_are_cores_for_their_threads(compose, monkeypatch):
    monkeypatch.setattr(side_by_side, "_started", set())
    config = compose(seeds=range(3))
    identities = set()
    for cores, options, expected in [
        (2, {}, 3),  # two, and then one beside an idle core, would take longer
        (16, {}, 3),
        (1, {}, 1),
        (2, {"threads": 2}, 1),
        (8, {"threads": 2, "workers": 1}, 3),
        (2, {"seeds_at_once": 1}, 1),
        (2, {"seeds_at_once": 3}, 3),
        (16, {"devices": 2}, 1),
    ]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        changed = config.model_copy(update={"trainer": config.trainer.model_copy(update=options)})
        side_by_side._started.clear()
        assert seeds_at_once(changed) == expected, (cores, options)
        if options.keys() <= {"seeds_at_once"}:
            identities.add(str(run_identity(changed, 0, "data")))
    assert len(identities) == 1


@pytest.mark.parametrize(("left", "expected"), [((4, 0), 2), ((5, 0), 2), ((6, 3), 3), ((3, 3), 2), ((3, 2), 2)])
def test_seeds_that_are_left_do_not_leave_a_core_idle(left, expected, compose, tmp_path, monkeypatch):
    seeds, finished = left
    monkeypatch.setattr(side_by_side, "_started", set())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    for seed in range(finished):
        (tmp_path / "run" / f"seed={seed}").mkdir(parents=True)
    config = compose(seeds=range(seeds)).model_copy(update={"output_dir": tmp_path / "run"})
    assert seeds_at_once(config) == expected


def test_on_a_gpu_as_many_seeds_as_fit_into_its_memory(compose, monkeypatch):
    def at_once(gibibytes: float) -> int:
        monkeypatch.setattr(side_by_side, "_free_gpu_memory", lambda: int(gibibytes * 2**30))
        return seeds_at_once(config)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(side_by_side, "_started", set())
    config = compose("trainer=gpu", "trainer.threads=1", seeds=range(8))
    assert [at_once(free) for free in (1, 6, 80)] == [1, 2, 8]
