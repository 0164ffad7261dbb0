"""Slices of medical images in DICOM and NIfTI files, as preparation and prediction read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convatlas.data.decoding import MAX_PIXELS, BadImageError, Decoded, decode_image, stretched

if TYPE_CHECKING:
    from convatlas.data.card import Card

__all__ = ["SUFFIXES", "decode_images", "is_volume", "read_dicom", "read_volume", "slices_of", "write_masks"]

VOLUMES = (".nii", ".nii.gz")
SUFFIXES = (".dcm", *VOLUMES)


def is_volume(path: Path) -> bool:
    """Say whether a file is a volume, by its ending."""
    return path.name.lower().endswith(VOLUMES)


def decode_images(path: Path, card: Card) -> list[Decoded]:
    """Decode a new picture or DICOM file, or all slices of a NIfTI volume, as the preparation did those of a data set.

    Grey levels are stretched in each slice. One of a single channel is repeated where the data set has three.

    Raises:
        BadImageError: it cannot be used; the text is the end of a sentence about the file.
    """
    if path.exists() and not path.is_file():
        raise BadImageError("it is no regular file")
    if is_volume(path):
        return [_decoded(planes, spacing, card) for planes, spacing in slices_of(*read_volume(path))]
    if path.suffix.lower() == ".dcm" or _is_dicom(path):
        pixels, spacing = read_dicom(path)
        return [_decoded(pixels[None], spacing, card)]
    return [decode_image(path, card)]


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False  # the reader of pictures says what is wrong


def _decoded(planes: NDArray[Any], spacing: Sequence[float] | None, card: Card) -> Decoded:
    channels = card.image_shape[0]
    if len(planes) not in {1, channels}:
        raise BadImageError(f"it has {len(planes)} channels, and the images of {card.name} have {channels}")
    if not np.isfinite(planes).all():
        raise BadImageError("it has values that are no numbers")
    pixels = np.stack([stretched(plane) for plane in planes])
    known = spacing is not None and len(spacing) == 2 and all(math.isfinite(mm) and mm > 0 for mm in spacing)
    rows_and_columns = (float(spacing[0]), float(spacing[1])) if spacing is not None and known else None
    return Decoded(pixels.repeat(channels // len(planes), axis=0), False, False, (), rows_and_columns)


def read_dicom(path: Path) -> tuple[NDArray[Any], Sequence[float] | None]:
    """Return the pixels, and the millimetres from row to row and from column to column, if they are given.

    Raises:
        BadImageError: it is missing, or no single slice of grey levels.
    """
    import pydicom

    try:
        dicom = pydicom.dcmread(path)
        if int(dicom.Rows) * int(dicom.Columns) * int(getattr(dicom, "NumberOfFrames", None) or 1) > MAX_PIXELS:
            raise BadImageError(f"it has more than {MAX_PIXELS:,} pixels")
        pixels = dicom.pixel_array
        negative = float(getattr(dicom, "RescaleSlope", None) or 1) < 0
        colours = getattr(dicom, "PhotometricInterpretation", "MONOCHROME2")
        spacing = getattr(dicom, "PixelSpacing", None)
        millimetres = None if not spacing else [float(mm) for mm in spacing]
    except (BadImageError, FileNotFoundError):
        raise
    except Exception as error:  # pydicom and its decoders raise nearly every kind for a damaged file
        raise BadImageError(f"it cannot be read as DICOM ({type(error).__name__})") from error
    if colours not in {"MONOCHROME1", "MONOCHROME2"}:
        raise BadImageError(f"its pixels are of the kind {colours}, not grey levels")
    if pixels.ndim != 2:
        raise BadImageError(f"it has the shape {pixels.shape}, not that of one slice")
    # Grey levels are stretched later, which undoes any rescaling but its sign; MONOCHROME1 shows the lowest as white.
    if negative != (colours == "MONOCHROME1"):
        pixels = -pixels.astype(np.float64)
    return pixels, millimetres


def read_volume(path: Path) -> tuple[Any, NDArray[Any]]:
    """Return a NIfTI volume and its voxels, along a row, down a column, slices, and channels where it has any.

    Raises:
        BadImageError: it cannot be used.
    """
    import nibabel

    try:
        volume: Any = nibabel.load(path)
        if math.prod(volume.shape) > 10 * MAX_PIXELS:
            raise BadImageError(f"{path.name} has more than {10 * MAX_PIXELS:,} voxels")
        voxels = np.asarray(volume.dataobj)
    except BadImageError:
        raise
    except FileNotFoundError as error:
        raise BadImageError(f"{path.name} is missing") from error
    except Exception as error:  # nibabel raises nearly every kind for a damaged header
        raise BadImageError(f"{path.name} is cut short or damaged") from error
    if voxels.ndim not in {3, 4}:
        raise BadImageError(f"{path.name} has {voxels.ndim} axes, not 3 or 4")
    if not voxels.size:
        raise BadImageError(f"{path.name} is empty")
    if voxels.dtype.kind not in "buif":
        raise BadImageError(f"{path.name} holds {voxels.dtype}, no grey levels")
    return volume, voxels


def slices_of(volume: Any, voxels: NDArray[Any]) -> list[tuple[NDArray[Any], tuple[float, float]]]:
    """Return the slices `(C, H, W)` of a volume, each with the millimetres from row to row and from column to column.

    The first axis of NIfTI points along a row, the second down a column. The distances are those written in the file:
    on loading, nibabel makes 1 of a missing one.
    """
    holder = volume.file_map.get("header", volume.file_map["image"])
    with holder.get_prepare_fileobj("rb") as file:
        header = type(volume.header).from_fileobj(file, check=False)
    spacing = (float(header["pixdim"][2]), float(header["pixdim"][1]))
    planes = voxels[..., None] if voxels.ndim == 3 else voxels
    return [(planes[:, :, number].transpose(2, 1, 0), spacing) for number in range(planes.shape[2])]


def write_masks(path: Path, masks: Sequence[NDArray[np.uint8]], like: Path) -> None:
    """Write the masks `(H, W)` of all slices as a volume that lies where `like` does."""
    import nibabel

    volume: Any = nibabel.load(like)
    voxels = np.stack([mask.T for mask in masks], axis=2)
    written = nibabel.Nifti1Image(voxels, volume.affine)
    written.header.set_xyzt_units(*volume.header.get_xyzt_units())
    nibabel.save(written, path)
