"""What all tests of the data share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_sets import data_config

from convatlas.data import prepare_dataset
from convatlas.data.prepared import PreparedData
from convatlas.data.raw import RawDataset


@pytest.fixture
def prepare_raw(tmp_path: Path) -> Callable[[RawDataset], PreparedData]:
    """Write a data set as `prepare` does, and open it."""

    def prepare_one(raw: RawDataset, **other: Any) -> PreparedData:
        config = data_config(raw, tmp_path, **other)
        prepare_dataset.prepare_raw(config, raw)
        return PreparedData.open(config.prepared)

    return prepare_one
