"""The GPUs whose peak is known, for the share of it that a training uses (MFU)."""

from __future__ import annotations

__all__ = ["peak_flops"]

# Dense tensor-core peaks in 10^12 FLOP/s from NVIDIA's data sheets: 16 bits with sums in float32, TF32, float32.
PEAKS: dict[str, tuple[float, float | None, float]] = {
    "H200": (989.0, 494.0, 67.0),
    "H100 80GB HBM3": (989.0, 494.0, 67.0),
    "H100 PCIe": (756.0, 378.0, 51.0),
    "A100": (312.0, 156.0, 19.5),
    "L40S": (362.0, 183.0, 91.6),
    "L4": (121.0, 60.0, 30.3),
    "T4": (65.0, None, 8.1),
}


def peak_flops(name: str | None, precision: str) -> float | None:
    """Return the FLOP/s that a GPU has at most.

    Args:
        name: as `torch.cuda.get_device_name` has it; None without a GPU.
        precision: of `trainer.precision`.

    Returns:
        None where the GPU or its peak in this precision is not known.
    """
    peaks = next((PEAKS[known] for known in PEAKS if name is not None and known in f"{name} "), None)
    if peaks is None:
        return None
    column = {"bf16-mixed": 0, "16-mixed": 0, "tf32-true": 1, "32-true": 2}.get(precision)
    peak = None if column is None else peaks[column]
    return None if peak is None else 1e12 * peak
