"""What the classifiers of a group answered to each test image, from the predictions that their runs left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError

if TYPE_CHECKING:
    from convatlas.reporting.variants import Variant

__all__ = ["Answers", "read_answers"]

COLUMNS = ("index", "label", "prediction")


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of all runs that were tested on the same images.

    Attributes:
        index: `(N,)` each image's position in the test split.
        labels: `(N,)` its class.
        predicted: by the variant's key and the seed, `(N,)` the class that the run named.
    """

    index: NDArray[np.int32]
    labels: NDArray[np.int32]
    predicted: Mapping[str, Mapping[int, NDArray[np.int32]]]


def read_answers(variants: Sequence[Variant], remedy: str) -> Answers | None:
    """Read the predictions of all runs; None where none has classes.

    The first run decides which images are meant; one that was tested on others is left out.

    Raises:
        UserError: a file is not readable; `remedy` ends the sentence.
    """
    index = labels = None
    predicted: dict[str, dict[int, NDArray[np.int32]]] = {}
    for variant in variants:
        for run in variant.runs:
            columns = _read(run.folder / "predictions.parquet", remedy)
            if columns is None:
                continue
            if index is None or labels is None:
                index, labels = columns[0], columns[1]
            if np.array_equal(columns[0], index) and np.array_equal(columns[1], labels):
                predicted.setdefault(variant.key, {})[run.seed] = columns[2]
    return None if index is None or labels is None else Answers(index, labels, predicted)


def _read(path: Path, remedy: str) -> list[NDArray[np.int32]] | None:
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
        raise UserError(f"{path} is not a readable table of predictions; {remedy}") from error
    order = np.argsort(columns[0], kind="stable")
    return [column[order] for column in columns]
