"""The class that each run of a group predicts for each test image, from the files that the runs left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.core.record import REMEDY

__all__ = ["Predictions", "read_predictions"]

COLUMNS = ("index", "label", "prediction")


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of all runs that were tested on the same images.

    Attributes:
        index: `(N,)` each image's position in the test split.
        labels: `(N,)` its class.
        classes: by the variant's key and the seed, `(N,)` the class that the run predicts.
    """

    index: NDArray[np.int32]
    labels: NDArray[np.int32]
    classes: Mapping[str, Mapping[int, NDArray[np.int32]]]


def read_predictions(folders: Mapping[str, Mapping[int, Path]]) -> Predictions | None:
    """Read the predictions of all runs, by the variant's key and the seed; None where none has classes.

    The first run decides which images are meant; one that was tested on others is left out.

    Raises:
        UserError: a file is not readable.
    """
    index = labels = None
    classes: dict[str, dict[int, NDArray[np.int32]]] = {}
    for key, by_seed in folders.items():
        for seed, folder in by_seed.items():
            columns = _read(folder / "predictions.parquet")
            if columns is None:
                continue
            if index is None or labels is None:
                index, labels = columns[0], columns[1]
            if np.array_equal(columns[0], index) and np.array_equal(columns[1], labels):
                classes.setdefault(key, {})[seed] = columns[2]
    return None if index is None or labels is None else Predictions(index, labels, classes)


def _read(path: Path) -> list[NDArray[np.int32]] | None:
    """Read index, label and prediction in the order of the index; None where the run has no such columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    try:
        with pq.ParquetFile(path) as file:
            if not set(COLUMNS) <= set(file.schema_arrow.names):
                return None
            table = file.read(columns=list(COLUMNS))
        columns = [table.column(name).to_numpy().astype(np.int32) for name in COLUMNS]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable table of predictions; {REMEDY}") from error
    order = np.argsort(columns[0], kind="stable")
    return [column[order] for column in columns]
