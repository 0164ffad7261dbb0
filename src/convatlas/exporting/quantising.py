"""ONNX models with 8-bit weights and activations: onnxruntime's static quantisation, calibrated on training images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.core.extras import load_extra

__all__ = ["quantise"]


def quantise(source: Path, target: Path, images: Iterator[NDArray[np.float32]]) -> None:
    """Write an 8-bit form of an ONNX model: its convolutions, linear layers and what lies between them.

    Each output channel has a scale of its own; scales of activations are those of the calibration.

    Args:
        source: the model in float32.
        target: the file to write.
        images: `(B, C, S, S)` in [0, 1], of the training split: those of the test must not take part.

    Raises:
        UserError: onnxruntime is not there.
    """
    quantization = load_extra("onnxruntime.quantization", "export", "quantise=int8")
    shaped = target.with_suffix(".shaped")
    try:
        load_extra("onnxruntime.quantization.shape_inference", "export", "quantise=int8").quant_pre_process(
            str(source), str(shaped), skip_symbolic_shape=True
        )
        quantization.quantize_static(
            str(shaped),
            str(target),
            _reader(quantization, images),
            per_channel=True,
            calibration_providers=["CPUExecutionProvider"],
        )
    finally:
        shaped.unlink(missing_ok=True)


def _reader(quantization: Any, images: Iterator[NDArray[np.float32]]) -> Any:
    """Return the images as onnxruntime's calibration asks for them, one batch after the other."""

    class Reader(quantization.CalibrationDataReader):
        """Gives batches by the name of the model's input."""

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            """Return the next batch, None at the end."""
            batch = next(images, None)
            return None if batch is None else {"images": batch}

    return Reader()
