"""Gradient accumulation: a batch goes through the net in pieces, one optimiser step is still a whole batch.

Order, augmentation and mixing are those of the whole batch, so that the pieces hold the images that it would have held.
What differs is the batch that a batch normalisation sees: a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from convatlas.core.errors import UserError
from convatlas.data.batches import Batch, StatelessLoader
from convatlas.data.module import DataModule

__all__ = ["InPieces", "PieceLoader"]


class InPieces(DataModule):
    """A data module whose training batches come in `pieces` equal parts, one after the other.

    `start_batch` counts pieces, as Lightning does.
    """

    def __init__(self, *arguments: Any, pieces: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pieces = pieces

    def train_dataloader(self) -> StatelessLoader:
        """Return the loader of shuffled, augmented training batches, in pieces."""
        whole = super().train_dataloader()
        whole.sampler.start_batch = self.start_batch // self.pieces  # type: ignore[attr-defined]
        return PieceLoader(whole, self.pieces)


class PieceLoader(StatelessLoader):
    """Yields each batch of a loader in equal pieces."""

    def __init__(self, whole: StatelessLoader, pieces: int) -> None:
        super().__init__(whole.dataset, whole.sampler, whole.num_workers, pin_memory=whole.pin_memory)  # type: ignore[arg-type]
        self.pieces = pieces

    def __len__(self) -> int:
        return super().__len__() * self.pieces

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            yield from _divided(batch, self.pieces)


def _divided(batch: Batch, pieces: int) -> Iterator[Batch]:
    images = len(batch["images"])
    if images % pieces:  # only the one batch of a split that is smaller than a batch
        raise UserError(
            f"trainer.accumulate_grad_batches={pieces} does not divide the {images} images of a batch; "
            "the training split is smaller than recipe.batch_size. Set one of the two lower."
        )
    size = images // pieces
    for first in range(0, images, size):
        yield {key: value[first : first + size] for key, value in batch.items()}
