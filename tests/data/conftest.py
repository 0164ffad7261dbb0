"""What all tests of the data share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_sets import data_config

from convatlas.data.prepare_dataset import describe, write
from convatlas.data.prepared import PreparedData
from convatlas.data.sources import RawDataset
from convatlas.data.splits import split_items
from convatlas.data.verification import verify


@pytest.fixture
def prepare_raw(tmp_path: Path) -> Callable[[RawDataset], PreparedData]:
    """Write a data set as `prepare` does, and open it."""

    def prepare_one(raw: RawDataset, **other: Any) -> PreparedData:
        config = data_config(raw, tmp_path, **other)
        findings = verify(raw, config.name)
        used = raw.take(findings.kept)
        parts = split_items(used, config.split, config.name)
        write(config.prepared, used, parts, describe(config, used, parts, findings))
        return PreparedData.open(config.prepared)

    return prepare_one
