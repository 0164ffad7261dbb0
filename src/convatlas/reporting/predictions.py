"""The class that each run of a group predicts for each test image, from the files that the runs left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.core.record import REMEDY

__all__ = ["Answers", "Predictions", "read_answers", "together"]

Answers = Mapping[str, NDArray[Any]]
"""What a run said of each test image, `(N,)` by column."""
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


def together(answers: Mapping[str, Mapping[int, Answers | None]]) -> Predictions | None:
    """Bring the answers of all runs together, by the variant's key and the seed; None where none has classes.

    The first run decides which images are meant; one that was tested on others is left out.
    """
    index = labels = None
    classes: dict[str, dict[int, NDArray[np.int32]]] = {}
    for key, by_seed in answers.items():
        for seed, columns in by_seed.items():
            if columns is None or not set(COLUMNS) <= set(columns):
                continue
            if index is None or labels is None:
                index, labels = columns["index"], columns["label"]
            if np.array_equal(columns["index"], index) and np.array_equal(columns["label"], labels):
                classes.setdefault(key, {})[seed] = columns["prediction"].astype(np.int32)
    if index is None or labels is None:
        return None
    return Predictions(index.astype(np.int32), labels.astype(np.int32), classes)


def read_answers(path: Path) -> Answers | None:
    """Read the columns of numbers of a run's predictions, in the order of the index; None without the file.

    Raises:
        UserError: the file is not readable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    try:
        with pq.ParquetFile(path) as file:
            numbers = [column.name for column in file.schema_arrow if pa.types.is_primitive(column.type)]
            table = file.read(columns=numbers)
        columns = {name: table.column(name).to_numpy() for name in numbers}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable table of predictions; {REMEDY}") from error
    order = np.argsort(columns["index"], kind="stable") if "index" in columns else slice(None)
    return {name: column[order] for name, column in columns.items()}
