"""Street View House Numbers, the cropped digits: colour images of 32 x 32 pixels in MATLAB files.

Netzer, Wang, Coates, Bissacco, Wu and Ng, "Reading Digits in Natural Images with Unsupervised Feature Learning" (NIPS
workshop, 2011).

    root/train_32x32.mat     root/test_32x32.mat     root/extra_32x32.mat (if asked for)

A file holds `X` (32, 32, 3, N) and `y` (N, 1) from 1 to 10; 10 is the digit 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.archives import GET_AGAIN, printable, reading
from convatlas.data.fetching import OfficialFile, check, fetch, require_root
from convatlas.data.raw import RawDataset

__all__ = ["load"]

TITLE = "Street View House Numbers, cropped digits"
SHAPE = (32, 32, 3)
LABEL_OF_ZERO = 10


def load(root: Path, *, extra: bool = False, download: bool = True, verify: bool = True) -> RawDataset:
    """Read the digits, and download what is missing of them.

    Args:
        root: see the head of this file.
        extra: add the 531,131 easier images of `extra_32x32.mat` (1.2 GiB) to the 73,257 for training.
        download: fetch files that are not there (train and test: 235 MiB).
        verify: compare the files with the official checksums.

    Raises:
        UserError: a file is missing and cannot be had, is not the official one, or is damaged.
    """
    from torchvision.datasets import SVHN

    require_root(root)
    parts = ["train", *(["extra"] if extra else []), "test"]
    files = {part: OfficialFile(name, md5, (url,)) for part, (url, name, md5) in SVHN.split_list.items()}
    fetch(root, [files[part] for part in parts], TITLE, allowed=download)
    images, labels, names, splits = [], [], [], []
    for part in parts:
        path = root / files[part].name
        if verify:
            check(path, files[part])
        pixels, digits = _read(path)
        images.append(pixels)
        labels.append(digits)
        names += [f"{part}/{item}" for item in range(len(digits))]
        splits += ["test" if part == "test" else "train"] * len(digits)
    return RawDataset(
        images=np.concatenate(images),
        classes=[str(digit) for digit in range(10)],
        title=TITLE,
        origin="Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu and A. Y. Ng (2011); Google Street View",
        licence="for non-commercial use only",
        made=False,
        labels=np.concatenate(labels),
        names=names,
        official_split=np.array(splits),
        notes=["The digits of one house number are items of their own; each may show a part of its neighbours."],
    )


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images `(N, 3, 32, 32)` and digits `(N,)`."""
    from scipy.io import loadmat

    try:
        with reading(path), path.open("rb") as file:
            content = loadmat(file, variable_names=["X", "y"])
    except UserError:
        raise
    except Exception as error:  # a damaged file raises nearly every kind
        raise UserError(
            f"{printable(path)} is damaged or no MATLAB file of version 5 ({type(error).__name__}). {GET_AGAIN}"
        ) from error
    if not {"X", "y"} <= set(content):
        raise UserError(f"{printable(path)} has no variables X and y. {GET_AGAIN}")
    pixels, labels = content["X"], content["y"].reshape(-1)
    if pixels.dtype != np.uint8 or pixels.shape != (*SHAPE, len(labels)):
        raise UserError(
            f"{printable(path)} is damaged: X is {pixels.dtype} of shape {pixels.shape} with {len(labels)} labels, not "
            f"uint8 of shape (32, 32, 3, N) with N. {GET_AGAIN}"
        )
    digits = labels.astype(np.int64)
    digits[digits == LABEL_OF_ZERO] = 0
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), digits
