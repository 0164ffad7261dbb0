"""What the product computes, to the bit: short trainings against the record in golden_runs/record.json.

On the CPU and with the package versions that the record names, everything in it must be equal exactly: each value of
the history, each test metric, and the digests of the predictions and of the best and the last weights. Elsewhere other
kernels run and the last bits differ, so there only the first epoch's training loss is compared, within 0.1 %: that
finds another net, other images or another loss, but not a small change in the optimiser. What a run has beyond the
record (a new metric) is no difference.

A change that is meant to change results rewrites the record with `python tests/golden_runs/record.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from golden_runs.record import RECORD, RUNS, Runner, environment

GOLDEN = json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Keep what runs share: prepared data, and the run whose weights another begins with."""
    return Runner(tmp_path_factory.mktemp("golden"))


def flat(result: dict[str, Any], at: str = "") -> dict[str, str]:
    """Return the leaves of a result by their path, numbers with all their digits."""
    leaves: dict[str, str] = {}
    for key, value in result.items():
        parts = {f"row {number}": row for number, row in enumerate(value, 1)} if isinstance(value, list) else value
        leaves |= flat(parts, f"{at}{key} ") if isinstance(parts, dict) else {f"{at}{key}": repr(parts)}
    return leaves


def runs() -> list[Any]:
    return [name if run.get("fast") else pytest.param(name, marks=pytest.mark.slow) for name, run in RUNS.items()]


@pytest.mark.parametrize("name", runs())
def test_a_run_computes_what_it_did(runner: Runner, name: str):
    golden = GOLDEN["runs"][RUNS[name].get("equals", name)]
    result = runner.result(name)
    assert result.keys() == golden.keys()
    if environment() == GOLDEN["environment"]:
        now = flat(result)
        different = {key: (value, now.get(key)) for key, value in flat(golden).items() if now.get(key) != value}
        assert different == {}, "(recorded, now)"
        assert all(len(result[seed]["history"]) == len(golden[seed]["history"]) for seed in golden)
    else:
        for seed, recorded in golden.items():
            first, now = (values["history"][0]["train/loss"] for values in (recorded, result[seed]))
            assert now == pytest.approx(first, rel=1e-3)


def test_every_run_has_a_record():
    assert {name for name, run in RUNS.items() if "equals" not in run} == set(GOLDEN["runs"])
