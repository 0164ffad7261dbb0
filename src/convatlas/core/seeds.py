"""Seeds of independent draws."""

from __future__ import annotations

__all__ = ["mixed_seed"]


def mixed_seed(*parts: int) -> int:
    """Mix whole numbers into one seed, so that (seed, step) and (seed + 1, step - 1) draw nothing alike."""
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = ((mixed ^ part) * 0xBF58476D1CE4E5B9) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63
