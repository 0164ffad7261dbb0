"""Arrays larger than memory: written row by row to a temporary file, and read a few rows at a time."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError

__all__ = ["Items", "Rows", "Spool", "chunks", "spooled_beside"]

Items: TypeAlias = NDArray[np.int64]
"""Positions of images: `(n,)`."""
CHUNK_BYTES = 1 << 24
"""Of the rows that are read at once: counting and hashing them takes several times as much."""
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def spooled_beside(folder: Path) -> Iterator[None]:
    """Write spools to the disk of a folder, which need not be there yet, instead of to the one for temporary files."""
    there = next(parent for parent in folder.absolute().parents if parent.is_dir())
    token = _folder.set(there)
    try:
        yield
    finally:
        _folder.reset(token)


class Spool:
    """Rows of one shape on their way to an array: they lie in a file without a name, which ends with the process."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._row: NDArray[Any] | None = None
        self._count = 0

    def append(self, row: NDArray[Any]) -> None:
        """Add a row.

        Raises:
            UserError: the disk is full or protected.
        """
        try:
            if self._file is None:
                self._file, self._row = tempfile.TemporaryFile(dir=_folder.get()), np.empty_like(row)  # noqa: SIM115
            assert self._row is not None
            assert row.shape == self._row.shape
            self._file.write(np.ascontiguousarray(row).data)
        except OSError as error:
            raise UserError(
                f"{_folder.get() or tempfile.gettempdir()} cannot be written: {error.strerror or error}. Make room or "
                "correct data.prepared, then try again."
            ) from error
        self._count += 1

    def array(self) -> NDArray[Any]:
        """Return all rows, mapped from the file; there is at least one."""
        assert self._file is not None
        assert self._row is not None
        self._file.flush()
        mapped = np.memmap(self._file, dtype=self._row.dtype, mode="r", shape=(self._count, *self._row.shape))
        return mapped.view(np.ndarray)


class Rows:
    """Chosen rows of an array in an order of their own, gathered only when they are read.

    Args:
        array: any array, also a mapped one.
        items: `(n,)` positions of the rows.
    """

    def __init__(self, array: NDArray[Any] | Rows, items: Items) -> None:
        self.array: NDArray[Any] = array.array if isinstance(array, Rows) else array
        self.items: Items = array.items[items] if isinstance(array, Rows) else items
        self.shape = (len(self.items), *self.array.shape[1:])
        self.dtype = self.array.dtype
        self.ndim = self.array.ndim

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        rows: NDArray[Any] = self.array[self.items[first]]
        return rows[(slice(None),) * (np.ndim(self.items[first])) + rest] if rest else rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


def chunks(array: NDArray[Any] | Rows, most: int | None = None) -> Iterator[NDArray[Any]]:
    """Yield the rows of an array, a few megabytes of them at a time, at least once; mapped pages are given back.

    Args:
        array: `(N, ...)`.
        most: rows in one chunk, whatever their size.
    """
    size = int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
    step = min(most or len(array), max(1, CHUNK_BYTES // max(1, size)))
    for first in range(0, max(1, len(array)), max(1, step)):
        yield array[first : first + step]
        _release(array.array if isinstance(array, Rows) else array)


def _release(array: Any) -> None:
    while isinstance(array, (np.ndarray, memoryview)):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    if isinstance(array, mmap.mmap) and hasattr(array, "madvise"):
        array.madvise(mmap.MADV_DONTNEED)
