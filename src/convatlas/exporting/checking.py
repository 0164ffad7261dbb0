"""Whether an exported net answers as the net does, and how well: on images of its own data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convatlas.data.batches import EvaluationBatches
from convatlas.models.served import SERVED
from convatlas.training.trained import TrainedRun

__all__ = ["Answers", "ForeignNet", "compare", "images_of"]

Answers: TypeAlias = Callable[[NDArray[np.float32]], Sequence[NDArray[Any]]]
"""An exported net: images `(B, C, S, S)` in [0, 1] to its outputs, in the order of `Served.outputs`;
detectors take one image."""
LIKE = 0.5
"""Pixels, and units of a score, within which two detections of a class are taken for the same one."""


def images_of(trained: TrainedRun, split: str, count: int, batch_size: int = 1) -> Iterator[NDArray[np.float32]]:
    """Yield images of a split in batches, evenly spread over it, as an exported net takes them.

    Args:
        trained: the run.
        split: train, validation or test.
        count: images at most.
        batch_size: images in a batch at most.

    Raises:
        UserError: the run's data are not prepared, or others than it was trained on.
    """
    config, prepared = trained.config, trained.prepared()
    data = config.data
    chosen = np.linspace(0, len(prepared.split(split)) - 1, min(count, len(prepared.split(split)))).astype(np.int64)
    batches = EvaluationBatches(
        prepared.split(split),
        image_size=data.image_size,
        batch_size=1,
        canny=prepared.card.has_canny(data),
        crop=config.recipe.test_crop,
    )
    for items in np.array_split(chosen, -(-len(chosen) // batch_size)):
        yield raw(batches.reader.read(items)["images"], trained).numpy()


def raw(images: Tensor, trained: TrainedRun) -> Tensor:
    """Undo the normalisation of a batch `(B, C, S, S)`: what exported nets take is in [0, 1]."""
    mean, std = (
        images.new_tensor(values).view(1, -1, 1, 1) for values in trained.card.normalisation(trained.config.data)
    )
    return (images * std + mean).clamp(0, 1)


def compare(served: nn.Module, answers: Answers, images: Iterator[NDArray[np.float32]]) -> tuple[int, float]:
    """Run the net and its exported form on the same images; returns how many they are and the largest difference.

    Of probabilities and scores it is in their unit, of boxes in pixels. A detection is compared with the one of its
    class that is most like it, since rounding changes the order of equal scores. One in a hundred may be in one of the
    two alone, as it happens where a score or an overlap lies at a border, and counts with its score; with more
    the difference is infinite.
    """
    count, differences = 0, [0.0]
    found, alone = 0, 0
    for batch in images:
        with torch.inference_mode():
            ours = served(torch.from_numpy(batch))
        ours = [each.numpy() for each in (ours if isinstance(ours, tuple) else (ours,))]
        theirs = [np.asarray(each) for each in answers(batch)]
        count += len(batch)
        if len(ours) == 3:
            for one, other in ((ours, theirs), (theirs, ours)):
                likeness = _differences(one, other)
                has_none = likeness > LIKE
                found, alone = found + len(likeness), alone + int(has_none.sum())
                differences += np.where(has_none, one[1], likeness).tolist()
        else:
            differences += [float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)]
    largest = float(np.max(differences))  # NaN if one is, which Python's `max` passes over
    return count, np.inf if alone > found / 100 else largest


def _differences(ones: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Return for each of some detections how far the most like of others is, in box or score; infinite without one."""
    boxes, scores, labels = ones
    apart = np.maximum(np.abs(boxes[:, None] - others[0][None]).max(axis=2), np.abs(scores[:, None] - others[1][None]))
    apart = np.where(labels[:, None] == others[2][None], apart, np.inf)
    nearest: NDArray[np.float64] = apart.min(axis=1, initial=np.inf)
    return nearest


class ForeignNet(nn.Module):
    """An exported net in the place of the net itself, so that the run's own test can judge it.

    Args:
        answers: the exported net.
        trained: its run.
    """

    def __init__(self, answers: Answers, trained: TrainedRun) -> None:
        super().__init__()
        self.answers = answers
        self.trained = trained

    def forward(self, images: Any) -> Any:
        """Take normalised images and return logits; of detectors, a list of images and their detections."""
        served = SERVED[self.trained.config.data.task]
        if not served.one_at_a_time:
            answer = self.answers(raw(images, self.trained).cpu().float().numpy())[0]
            return torch.from_numpy(np.array(answer)).clamp_min(1e-30).log().to(images.device)
        found = [self.answers(image[None].cpu().numpy()) for image in images]
        return [
            {
                name: torch.from_numpy(np.array(value)).to(images[0].device)
                for name, value in zip(served.outputs, each, strict=True)
            }
            for each in found
        ]
