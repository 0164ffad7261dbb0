"""Encoded images in shards: Arrow IPC files that are mapped into memory.

Training takes images in an order drawn anew each epoch, and after a resume goes on in the middle of it. So any image
has to be found at once, without reading those before it: a shard is one Arrow record batch, whose offsets lead to the
bytes of each image in the mapped file, and nothing is copied before it is decoded. Libraries that stream (WebDataset,
MosaicML Streaming, LitData) read in sequence, shuffle within a buffer, and keep a state that has to be saved.

A shard has the columns `image` (bytes of a JPEG or PNG), `height` and `width`. Any Arrow reader opens it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SHARD_BYTES", "ShardedImages", "shard_file", "write_shards"]

COLUMNS = ["image", "height", "width"]
SHARD_BYTES = 256 * 2**20
"""A shard is closed when its images have so many bytes: large enough for few files, small enough to be copied."""


class ShardedImages:
    """Encoded images of one split, in order.

    Args:
        paths: the shards in order.

    Attributes:
        sizes: `(N, 2)` int64, height and width of each image.

    Raises:
        ValueError: a shard is missing, cut short or no shard; the text names it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._shards = [_open(path) for path in paths]
        counts = [shard.num_rows for shard in self._shards]
        self._ends = np.cumsum(counts, dtype=np.int64)
        sizes = [np.stack([shard.column(side).to_numpy() for side in ("height", "width")], 1) for shard in self._shards]
        self.sizes: NDArray[np.int64] = np.concatenate([np.zeros((0, 2), dtype=np.int64), *sizes])

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, item: int) -> Any:
        """Return a buffer of the bytes of an image; they lie in the mapped file."""
        shard = int(np.searchsorted(self._ends, item, side="right"))
        row = item - int(self._ends[shard - 1] if shard else 0)
        return self._shards[shard].column("image")[row].as_buffer()


def write_shards(folder: Path, split: str, images: Iterable[tuple[bytes, int, int]]) -> list[Path]:
    """Write the images of a split.

    Args:
        folder: it exists.
        split: for the names of the files.
        images: bytes, height and width of each.

    Returns:
        the files in order.

    Raises:
        OSError: the disk is full, or protected.
    """
    paths: list[Path] = []
    waiting: list[tuple[bytes, int, int]] = []
    size = 0
    for image in images:
        waiting.append(image)
        size += len(image[0])
        if size >= SHARD_BYTES:
            paths.append(_write(folder / shard_file(split, len(paths)), waiting))
            waiting, size = [], 0
    if waiting:
        paths.append(_write(folder / shard_file(split, len(paths)), waiting))
    return paths


def shard_file(split: str, number: int) -> str:
    """Return the file name of a shard."""
    return f"{split}_images_{number:05d}.arrow"


def _write(path: Path, images: list[tuple[bytes, int, int]]) -> Path:
    import pyarrow as pa

    data, heights, widths = zip(*images, strict=True)
    columns = [pa.array(data, pa.binary()), pa.array(heights, pa.int32()), pa.array(widths, pa.int32())]
    batch = pa.record_batch(columns, names=COLUMNS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return path


def _open(path: Path) -> pa.RecordBatch:
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.num_record_batches != 1 or reader.schema.names != COLUMNS:
            raise ValueError("it is no shard of images")
        batch = reader.get_batch(0)
        batch.validate(full=True)  # offsets that lead out of the file would end the process
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is cut short or damaged ({error})") from error
    return batch
