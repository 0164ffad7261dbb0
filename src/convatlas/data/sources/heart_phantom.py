"""Heart phantom: made slices through a heart, across its long axis, as cardiac MRI shows them. A set for segmentation.

Nothing here met a scanner. Each patient has an anatomy of its own (size, wall, right ventricle, place, orientation,
contrast), from which several slices are cut between the base and the apex of the heart: the left ventricle's cavity in
a closed ring of muscle, and the right ventricle as a crescent beside it. What makes it hard is what makes the real task
hard: the blood of vessels looks like that of the ventricles and the liver like muscle, papillary muscles lie inside the
cavity and belong to it, the coil's sensitivity varies over the picture, and the noise is Rician, as in magnitude images
(Gudbjartsson and Patz 1995).

Lengths are fractions of the picture's side; the picture's centre is (0, 0), x points right and y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from convatlas.core.errors import UserError
from convatlas.data.raw import RawDataset

__all__ = ["BACKGROUND", "CAVITY", "MUSCLE", "RIGHT_VENTRICLE", "Patient", "draw_patient", "draw_slice", "load"]

CLASSES = ("background", "right_ventricle", "muscle", "cavity")
BACKGROUND, RIGHT_VENTRICLE, MUSCLE, CAVITY = range(4)

MOST_SLICES = 1_000_000
SUPERSAMPLING = 3
"""Points a pixel and axis: at edges a pixel gets the mean grey of the tissues that share it. Odd, to have a middle."""
RIGHT_WALL = 0.016
"""Thickness of the right ventricle's wall, which is seen but is background, as clinicians draw it."""
LEAST_WALL_PIXELS = 2.0
"""Thickness of muscle around the cavity, so that the ring is closed in the smallest picture too."""

Field = NDArray[np.float64]
"""`(side, side)` values over the picture."""


@dataclass(frozen=True)
class Patient:
    """The anatomy and the scan of one made patient.

    Attributes:
        centre: x and y of the left ventricle's axis at the base.
        tilt: how far the axis moves in x and y from base to apex.
        cavity_radius: of the left ventricle's cavity at the base.
        wall: thickness of its muscle.
        cavity_shape, muscle_shape: amplitude and phase of the 2nd and 3rd harmonic of the two outlines.
        right_angle: direction from the left to the right ventricle, in radians.
        right_reach: how far the right ventricle extends beyond the muscle at the base.
        right_length: its half-length across that direction, in outer radii of the muscle.
        right_ends: slice position, from 0 (base) to 1 (apex), beyond which it is not seen.
        blood, muscle, fat, lung, liver, tissue: signal of what is seen, from 0 to 1.
        texture: strength of the tissues' own unevenness.
        bias: relative strength of the coil's uneven sensitivity.
        noise: standard deviation of the noise in each of the two channels of the signal.
        blur: standard deviation of the point spread, in pixels.
    """

    centre: tuple[float, float]
    tilt: tuple[float, float]
    cavity_radius: float
    wall: float
    cavity_shape: tuple[tuple[float, float], tuple[float, float]]
    muscle_shape: tuple[tuple[float, float], tuple[float, float]]
    right_angle: float
    right_reach: float
    right_length: float
    right_ends: float
    blood: float
    muscle: float
    fat: float
    lung: float
    liver: float
    tissue: float
    texture: float
    bias: float
    noise: float
    blur: float

    def axis(self, position: float) -> tuple[float, float]:
        """Return x and y of the left ventricle's axis in the slice at this position."""
        return self.centre[0] + position * self.tilt[0], self.centre[1] + position * self.tilt[1]


def load(
    root: Path,  # noqa: ARG001 - every source takes `root`; this one needs no files
    patients: int = 150,
    slices: int = 6,
    image_size: int = 64,
    seed: int = 0,
) -> RawDataset:
    """Make the slices of all patients; the same arguments make the same bytes.

    Args:
        root: not read, nothing is written there.
        patients: number of patients; each is a group that no split divides.
        slices: of each patient, spread evenly from base to apex.
        image_size: side of a slice in pixels, 48 or more.
        seed: decides everything. A patient depends on its number too: more patients leave the first unchanged.

    Raises:
        UserError: no patient, no slice, or too small an `image_size`.
    """
    if patients < 1 or slices < 1:
        raise UserError(f"data.source.patients={patients} and data.source.slices={slices} must be 1 or more.")
    if patients * slices > MOST_SLICES or seed < 0:
        raise UserError(
            f"data.source: use at most {MOST_SLICES:,} slices ({patients * slices}), and a seed from 0 ({seed})."
        )
    if image_size < 48:
        raise UserError(
            f"data.source.image_size={image_size} leaves the heart's wall thinner than two pixels; use 48 or more."
        )
    images, masks = [], []
    for number in range(patients):
        generator = np.random.default_rng([seed, number])
        patient = draw_patient(generator)
        for position in (np.arange(slices) + 0.5) / slices:
            image, mask = draw_slice(patient, float(position), image_size, generator)
            images.append(image)
            masks.append(mask)
    return RawDataset(
        images=np.stack(images)[:, None],
        classes=list(CLASSES),
        title="Heart phantom",
        origin="Made by convatlas: no patient, no scanner",
        licence="as convatlas",
        made=True,
        masks=np.stack(masks),
        groups=np.repeat(np.arange(patients, dtype=np.int64), slices),
        notes=[
            "The images are made by a program; results on them say nothing about patients.",
            f"{slices} slices of each of {patients} made patients, from base to apex; the patient is the group.",
            "Papillary muscles belong to the cavity. The right ventricle ends before the apex: some slices lack it.",
        ],
    )


def draw_patient(generator: Generator) -> Patient:
    """Draw the anatomy and the scan of a patient."""
    uniform = generator.uniform

    def outline(second: float, third: float) -> tuple[tuple[float, float], tuple[float, float]]:
        turn = 2 * np.pi
        return (uniform(0, second), uniform(0, turn)), (uniform(0, third), uniform(0, turn))

    muscle = uniform(0.22, 0.4)
    return Patient(
        centre=(uniform(-0.06, 0.14), uniform(-0.1, 0.1)),
        tilt=(uniform(-0.02, 0.08), uniform(-0.02, 0.07)),
        cavity_radius=uniform(0.1, 0.16),
        wall=uniform(0.048, 0.085),
        cavity_shape=outline(0.09, 0.06),
        muscle_shape=outline(0.06, 0.04),
        right_angle=np.pi + uniform(-0.7, 0.9),
        right_reach=uniform(0.08, 0.17),
        right_length=uniform(0.8, 1.15),
        right_ends=uniform(0.72, 1.05),
        blood=muscle + uniform(0.22, 0.42),
        muscle=muscle,
        fat=uniform(0.65, 1.0),
        lung=uniform(0.03, 0.12),
        liver=muscle + uniform(-0.08, 0.2),
        tissue=muscle + uniform(-0.08, 0.2),
        texture=uniform(0.03, 0.09),
        bias=uniform(0.1, 0.4),
        noise=uniform(0.02, 0.06),
        blur=uniform(0.3, 0.7),
    )


# ---- one slice ------------------------------------------------------------------------------------------------------


def draw_slice(
    patient: Patient, position: float, side: int, generator: Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut one slice.

    Args:
        patient: whose heart.
        position: from 0 (base) to 1 (apex).
        side: of the picture in pixels.
        generator: draws what is not the patient's own: papillary muscles, vessels, texture, sensitivity, noise.

    Returns:
        The image and the mask of class numbers, both `(side, side)`.
    """
    points = side * SUPERSAMPLING
    axis = (np.arange(points) + 0.5) / points - 0.5
    x, y = np.meshgrid(axis, axis)
    left, top = patient.axis(position)
    heart = heart_classes(patient, position, x - left, y - top, LEAST_WALL_PIXELS / side)
    signal = surroundings(patient, x, y, generator)
    signal[right_ventricle(patient, position, x - left, y - top, grown_by=RIGHT_WALL)] = patient.muscle
    signal[heart == RIGHT_VENTRICLE] = patient.blood * generator.uniform(0.9, 1.05)
    signal[heart == MUSCLE] = patient.muscle
    signal[heart == CAVITY] = patient.blood
    signal[papillary_muscles(patient, position, x - left, y - top, generator) & (heart == CAVITY)] = patient.muscle
    signal *= 1 + patient.texture * smooth_field(points, 14, generator)
    image = scan(patient, signal.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING).mean(axis=(1, 3)), generator)
    middle = slice(SUPERSAMPLING // 2, None, SUPERSAMPLING)
    return image, heart[middle, middle].astype(np.uint8)


def heart_classes(patient: Patient, position: float, x: Field, y: Field, least_wall: float) -> NDArray[np.int64]:
    """Return the class of each point, given from the axis: the ring around the cavity lies over the right ventricle."""
    distance, angle = np.hypot(x, y), np.arctan2(y, x)
    shrink = np.sqrt(1 - (0.85 * position) ** 2)  # a half ellipsoid, cut a little before its tip
    endocardium = patient.cavity_radius * shrink * outline_factor(patient.cavity_shape, angle)
    wall = patient.wall * (0.8 + 0.2 * shrink) * outline_factor(patient.muscle_shape, angle)
    epicardium = endocardium + np.maximum(wall, least_wall)
    classes = np.full(x.shape, BACKGROUND)
    classes[right_ventricle(patient, position, x, y)] = RIGHT_VENTRICLE
    classes[distance < epicardium] = MUSCLE
    classes[distance < endocardium] = CAVITY
    return classes


def outline_factor(shape: tuple[tuple[float, float], tuple[float, float]], angle: Field) -> Field:
    """Return the factor by which an outline differs from a circle at each angle."""
    (second, second_phase), (third, third_phase) = shape
    return 1 + second * np.cos(2 * angle + second_phase) + third * np.cos(3 * angle + third_phase)


def right_ventricle(patient: Patient, position: float, x: Field, y: Field, grown_by: float = 0.0) -> NDArray[np.bool_]:
    """Return where an ellipse beside the ring lies; the ring, drawn over it, makes it a crescent."""
    if position > patient.right_ends:
        return np.zeros(x.shape, dtype=bool)
    shrink = np.sqrt(1 - (position / (1.05 * patient.right_ends)) ** 2)
    outer = (patient.cavity_radius + patient.wall) * np.sqrt(1 - (0.85 * position) ** 2)
    along = x * np.cos(patient.right_angle) + y * np.sin(patient.right_angle)
    across = y * np.cos(patient.right_angle) - x * np.sin(patient.right_angle)
    middle = 0.45 * outer
    reach = outer + patient.right_reach * shrink - middle + grown_by
    length = outer * patient.right_length * (0.6 + 0.5 * shrink) + grown_by
    bend = 0.35 * across**2 / outer  # the ends of the crescent follow the ring
    return ((along - middle + bend) / reach) ** 2 + (across / length) ** 2 < 1


def papillary_muscles(patient: Patient, position: float, x: Field, y: Field, generator: Generator) -> NDArray[np.bool_]:
    """Return where the two papillary muscles lie, opposite the right ventricle; none near the base."""
    found = np.zeros(x.shape, dtype=bool)
    for angle_from_the_free_wall in (-0.75, 0.75):
        angle = patient.right_angle + np.pi + angle_from_the_free_wall + generator.uniform(-0.3, 0.3)
        middle = patient.cavity_radius * generator.uniform(0.5, 0.75)
        size = patient.cavity_radius * generator.uniform(0.15, 0.28) * (position > 0.25)
        found |= np.hypot(x - middle * np.cos(angle), y - middle * np.sin(angle)) < size
    return found


# ---- around the heart -----------------------------------------------------------------------------------------------


def surroundings(patient: Patient, x: Field, y: Field, generator: Generator) -> Field:
    """Return the signal of a chest without a heart: lungs, liver, chest wall with fat, and vessels.

    The patient's left is on the picture's right, as radiologists see it.
    """
    uniform = generator.uniform
    points = len(x)
    signal = np.full(x.shape, patient.tissue)
    wobble = 0.03 * smooth_field(points, 5, generator)
    left_lung = ((x - 0.42 - 0.05 * uniform()) / 0.3) ** 2 + ((y + 0.05) / 0.42) ** 2 + 4 * wobble < 1
    right_lung = ((x + 0.5) / 0.22) ** 2 + ((y + 0.02) / 0.36) ** 2 + 4 * wobble < 1
    signal[left_lung | right_lung] = patient.lung
    signal[y + 0.3 * x + wobble > 0.3 + 0.04 * uniform()] = patient.liver
    front = -0.38 + 0.25 * (x - 0.1) ** 2 + 0.5 * wobble  # the chest wall runs along the upper edge
    signal[y < front] = patient.fat
    signal[y < front - 0.04] = patient.muscle
    signal[y < front - 0.075] = patient.fat
    for _ in range(generator.integers(2, 5)):  # fat around the heart
        fat_x, fat_y = uniform(-0.4, 0.4), uniform(-0.35, 0.35)
        signal[((x - fat_x) / uniform(0.03, 0.1)) ** 2 + ((y - fat_y) / uniform(0.02, 0.07)) ** 2 < 1] = patient.fat
    aorta_x, aorta_y = uniform(-0.1, 0.3), uniform(0.24, 0.36)
    distance = np.hypot(x - aorta_x, y - aorta_y)
    signal[distance < 0.055] = patient.muscle
    signal[distance < 0.043] = patient.blood
    for _ in range(generator.integers(3, 9)):  # vessels of lung and liver
        vessel = np.hypot(x - uniform(-0.5, 0.5), y - uniform(-0.4, 0.5))
        signal[vessel < uniform(0.008, 0.03)] = patient.blood
    return signal


def smooth_field(points: int, knots: int, generator: Generator) -> Field:
    """Return random values of unit variance on a `knots` x `knots` grid, interpolated to `points` x `points`."""
    coarse = generator.normal(size=(knots, knots))
    steps = np.linspace(0, knots - 1, points)
    field: Field = ndimage.map_coordinates(coarse, np.meshgrid(steps, steps, indexing="ij"), order=1)
    return field


# ---- the scanner ----------------------------------------------------------------------------------------------------


def scan(patient: Patient, signal: Field, generator: Generator) -> NDArray[np.uint8]:
    """Turn the signal into the scanner's picture: blur, uneven sensitivity, Rician noise, and grey levels."""
    side = len(signal)
    steps = np.linspace(0, 2, side)
    grid = np.meshgrid(steps, steps, indexing="ij")
    sensitivity = np.exp(patient.bias * ndimage.map_coordinates(generator.normal(size=(3, 3)), grid, order=2))
    seen = ndimage.gaussian_filter(signal, patient.blur) * sensitivity
    real, imaginary = generator.normal(0, patient.noise, (2, side, side))
    magnitude = np.hypot(seen + real, imaginary)
    white = np.quantile(magnitude, 0.99)  # scanners too scale each picture by its brightest part
    return np.clip(np.rint(255 * magnitude / white), 0, 255).astype(np.uint8)
