"""The table of latencies: what is measured, and for whom it counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convatlas.core.errors import UserError
from convatlas.core.files import read_json, write_json
from convatlas.search import latency
from convatlas.search.latency import fastest, table_for
from convatlas.search.spaces import make_space


@pytest.fixture
def table(search, tmp_path, monkeypatch):
    """Read or measure the table of the small space; every operator takes as many microseconds as it has weights."""
    run = search("fbnet_dnas")
    space = make_space(run.search.space, 16)
    measured = []

    def count(modules, rounds):
        measured.append(len(modules))
        return [1.0 + sum(p.numel() for p in module.parameters()) for module, _ in modules]

    monkeypatch.setattr(latency, "fastest", count)

    def table(size=16, **options):
        found = make_space(run.search.space, size) if size != 16 else space
        options = {"in_channels": 1, "num_classes": 10, "device": torch.device("cpu"), "rounds": 1, **options}
        return table_for(found, tmp_path / "own.json", **options), measured

    return table


def test_each_operator_and_shape_is_measured_once_and_kept(table):
    first, measured = table()
    shapes = set(first.microseconds) - {"stem", "head"}
    # Two layers: of stride 2 without skip, and of stride 1 with it.
    assert len(shapes) == 3 + 4
    second, measured = table()
    assert measured == [2 + len(shapes)]
    assert second == first


def test_a_table_of_another_machine_is_refused(table, tmp_path):
    table()
    values = read_json(tmp_path / "own.json", "")
    values["machine"]["processor"] = "a faster one"
    write_json(tmp_path / "own.json", values)
    with pytest.raises(UserError, match=r"another machine \(processor was a faster one.*remeasure=true"):
        table()
    again, measured = table(remeasure=True)
    assert len(measured) == 2
    assert again.machine["processor"] != "a faster one"


def test_a_table_of_another_space_is_refused(table):
    table()
    with pytest.raises(UserError, match=r"another search space or image size; pass search\.latency\.remeasure=true"):
        table(size=32)


@pytest.mark.parametrize("content", ["{}", "[]", '{"machine": [], "space": 1, "microseconds": null}'])
def test_a_damaged_table_is_refused(table, tmp_path, content):
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(UserError, match=r"own\.json is not a table of latencies; delete it, or name another"):
        table()


def test_more_work_takes_longer():
    image = torch.rand(1, 64, 16, 16)
    small, large = nn.Conv2d(64, 8, 1), nn.Conv2d(64, 512, 3)
    one, other = fastest([(small, image), (large, image)], rounds=5)
    assert 0 < one < other
