"""Pictures in, answers out: what a model that MLflow serves does around its `torch.export` program.

Each logged model has a package with a copy of this file and of those of `FILES` that it imports, by relative names
alone: it answers where convatlas is not. `convatlas.tracking.serving` puts the model together.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .decoding import BadImageError, decode
from .squares import Geometry, fit_image

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMN", "DESCRIPTION", "FILES", "PROGRAM", "PictureModel"]

FILES = ("served.py", "decoding.py", "squares.py", "edges.py")
PROGRAM, DESCRIPTION = "model.pt2", "description.json"
COLUMN = "image"
"""Of the pictures, in what the model is asked with."""
AT_ONCE = 16
"""Pictures that go through the program together."""


def _load_pyfunc(path: str) -> PictureModel:
    """Load a model; MLflow calls this, by its name."""
    return PictureModel(Path(path))


class PictureModel:
    """A net between pictures of any size and plain answers.

    Args:
        folder: with `PROGRAM` and `DESCRIPTION`: what `Card.for_programs` returns, and under `card` what `fit_image`
            needs of the data card.
    """

    def __init__(self, folder: Path) -> None:
        self.about: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        self.card: Any = SimpleNamespace(**self.about["card"])
        self.task: str = self.about["task"]
        if self.task == "detection":
            import torchvision  # noqa: F401 - the program has operators of it
        self.program = torch.export.load(folder / PROGRAM).module()

    def predict(self, asked: pd.DataFrame, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Answer for the pictures of the column `COLUMN`.

        A picture is base64 text or bytes of an image file, or an array `(H, W)` or `(H, W, 3)` of whole numbers from 0
        to 255. An array `(C, S, S)`, as the net takes it, is a tensor in [0, 1], not normalised.

        Returns:
            For each picture, in classification `prediction`, `confidence` and the `probabilities` of all classes; in
            segmentation `pixels`, by class, and `mask`, `(H, W)` class numbers; in detection `objects`, each with
            `class`, `score` and `box`, in pixels of the picture, the top-scoring first.

        Raises:
            MlflowException: an image cannot be used.
        """
        from mlflow.exceptions import MlflowException

        values = [each for cell in asked[COLUMN].tolist() for each in (cell if _is_texts(cell) else [cell])]
        given = []
        for number, value in enumerate(values, start=1):
            try:
                given.append(self._fitted(value))
            except BadImageError as error:
                raise MlflowException.invalid_parameter_value(f"Image {number} of {len(values)}: {error}.") from error
        size = 1 if self.task == "detection" else AT_ONCE
        return [answer for start in range(0, len(given), size) for answer in self._answers(given[start : start + size])]

    # ---- before the net ---------------------------------------------------------------------------------------------

    def _fitted(self, value: Any) -> tuple[Tensor, Geometry, tuple[int, int]]:
        """Return what the program takes of a picture, `(C, S, S)`, where its pixels went, and its height and width."""
        shape = tuple(self.about["input_size"])
        array = None if isinstance(value, str | bytes) else _array(value)
        if array is not None and array.shape == shape:
            if not (array.min() >= 0 and array.max() <= 1):
                raise BadImageError(
                    f"an array of the net's own shape {shape} has values in [0, 1], and this has others"
                )
            return torch.from_numpy(array.astype(np.float32)), Geometry((1, 1), (0, 0)), (shape[1], shape[2])
        data = _from_base64(value) if isinstance(value, str) else value if array is None else _file_of(array, shape)
        pixels = decode(data, self.card.image_shape[0], percentiles=self.card.percentiles).pixels
        image, geometry = fit_image(pixels, self.card, shape[1], crop=self.about["test_crop"])
        if len(image) < shape[0]:
            from .edges import canny_edges

            edges = canny_edges((255 * image[None]).round().to(torch.uint8).numpy())
            image = torch.cat([image, torch.from_numpy(edges).to(image)])
        return image, geometry, (pixels.shape[1], pixels.shape[2])

    # ---- after it ---------------------------------------------------------------------------------------------------

    def _answers(self, given: Sequence[tuple[Tensor, Geometry, tuple[int, int]]]) -> list[dict[str, Any]]:
        with torch.no_grad():
            found = self.program(torch.stack([image for image, _, _ in given]))
        readers: dict[str, Callable[[Any, Geometry, tuple[int, int]], dict[str, Any]]] = {
            "classification": self._class,
            "segmentation": self._mask,
            "detection": self._objects,
        }
        read = readers[self.task]
        each = [found] if self.task == "detection" else found
        return [read(answer, geometry, size) for answer, (_, geometry, size) in zip(each, given, strict=True)]

    def _class(self, answer: Tensor, geometry: Geometry, size: tuple[int, int]) -> dict[str, Any]:
        number = int(answer.argmax())
        return {
            "prediction": self.about["classes"][number],
            "confidence": float(answer[number]),
            "probabilities": answer.tolist(),
        }

    def _mask(self, answer: Tensor, geometry: Geometry, size: tuple[int, int]) -> dict[str, Any]:
        margin = (self.about["input_size"][-1] - answer.shape[-1]) // 2  # an unpadded U-Net leaves the border out
        mask = geometry.maps_back(F.pad(answer, (margin,) * 4), size).argmax(dim=0)
        counts = torch.bincount(mask.flatten(), minlength=len(self.about["classes"])).tolist()
        return {"pixels": dict(zip(self.about["classes"], counts, strict=True)), "mask": mask.tolist()}

    def _objects(self, answer: Sequence[Tensor], geometry: Geometry, size: tuple[int, int]) -> dict[str, Any]:
        boxes, scores, labels = answer
        height, width = size
        corners = geometry.back(boxes).clamp_min(0).minimum(boxes.new_tensor([width, height, width, height]))
        return {
            "objects": [
                {"class": self.about["classes"][number], "score": score, "box": box}
                for number, score, box in zip(labels.tolist(), scores.tolist(), corners.tolist(), strict=True)
            ]
        }


def _is_texts(cell: Any) -> bool:
    """Say whether a row holds several texts: MLflow makes that of `{"image": [text, text]}`."""
    return isinstance(cell, list) and bool(cell) and all(isinstance(each, str) for each in cell)


def _from_base64(text: str) -> bytes:
    """Return the bytes of base64 text, which may begin as the address of data does: `data:image/png;base64,`."""
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImageError("it is text, but not base64 of an image file") from error


def _array(value: Any) -> np.ndarray:
    """Return an array of numbers, or of nested lists of them."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "buif":
        raise BadImageError("it is neither base64 text nor an array of numbers")
    return array


def _file_of(array: np.ndarray, shape: tuple[int, ...]) -> bytes:
    """Return a picture in an array as the file that `decode` takes; `shape` is that of the net's own images."""
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or 0 in array.shape:
        raise BadImageError(
            f"an array is a picture of (height, width) or (height, width, 3), or of the net's own shape {shape}, "
            f"but this one has {array.shape}"
        )
    whole = array.astype(np.uint8)
    if (whole != array).any():
        raise BadImageError("the pixels of a picture are whole numbers from 0 to 255, but it has others")
    file = io.BytesIO()
    Image.fromarray(whole).save(file, "PNG", compress_level=1)
    return file.getvalue()
