"""MNIST and Fashion-MNIST: images of 28 x 28 pixels in IDX files.

LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition" (Proc. IEEE, 1998);
Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms" (2017).

    root/train-images-idx3-ubyte[.gz]     root/train-labels-idx1-ubyte[.gz]
    root/t10k-images-idx3-ubyte[.gz]      root/t10k-labels-idx1-ubyte[.gz]

They may also lie in `raw/` or, as torchvision puts them, in `MNIST/raw/` or `FashionMNIST/raw/`. An IDX file is a
big-endian header, two zero bytes, the type (8: unsigned bytes), the number of dimensions and the size of each as 32
bits, and then the values.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.archives import GET_AGAIN, printable, read_file
from convatlas.data.fetching import OfficialFile, check, fetch, require_root
from convatlas.data.raw import RawDataset

if TYPE_CHECKING:
    from torchvision.datasets import MNIST

__all__ = ["load_fashion_mnist", "load_mnist", "read_idx"]

UNSIGNED_BYTES = 8
PARTS = {"train": "train", "t10k": "test"}
# md5 of the unpacked files; those of the gzipped ones are torchvision's.
UNPACKED = {
    "MNIST": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def load_mnist(root: Path, *, download: bool = True, verify: bool = True) -> RawDataset:
    """Read MNIST, and download what is missing of it.

    Args:
        root: see the head of this file.
        download: fetch files that are not there.
        verify: compare the files with the official checksums.

    Raises:
        UserError: a file is missing and cannot be had, is not the official one, or is damaged.
    """
    from torchvision.datasets import MNIST

    return _load(
        root,
        MNIST,
        title="MNIST",
        origin="Y. LeCun, C. Cortes and C. Burges; from NIST's Special Databases 1 and 3 (1998)",
        licence="CC BY-SA 3.0",
        classes=[str(digit) for digit in range(10)],
        notes=["The test images are of other writers than the training images; who wrote which is not recorded here."],
        download=download,
        verify=verify,
    )


def load_fashion_mnist(root: Path, *, download: bool = True, verify: bool = True) -> RawDataset:
    """Read Fashion-MNIST, and download what is missing of it; arguments and errors as of `load_mnist`."""
    from torchvision.datasets import FashionMNIST

    return _load(
        root,
        FashionMNIST,
        title="Fashion-MNIST",
        origin="H. Xiao, K. Rasul and R. Vollgraf, Zalando Research (2017); arXiv:1708.07747",
        licence="MIT",
        classes=list(FashionMNIST.classes),
        notes=["Made of a shop's pictures, scaled to 28 x 28 pixels of inverted grey."],
        download=download,
        verify=verify,
    )


def _load(
    root: Path,
    published: type[MNIST],
    *,
    title: str,
    origin: str,
    licence: str,
    classes: list[str],
    notes: list[str],
    download: bool,
    verify: bool,
) -> RawDataset:
    paths = _paths(root, published, title, download)
    if verify:
        known = dict(published.resources) | UNPACKED[published.__name__]
        for path in paths.values():
            if path.name in known:
                check(path, OfficialFile(path.name, known[path.name]))
    images, labels, names, splits = [], [], [], []
    for part, split in PARTS.items():
        image_path, label_path = paths[f"{part}-images-idx3-ubyte"], paths[f"{part}-labels-idx1-ubyte"]
        images.append(read_idx(image_path, 3))
        labels.append(read_idx(label_path, 1))
        if len(images[-1]) != len(labels[-1]):
            raise UserError(
                f"{printable(label_path)} has {len(labels[-1])} labels for the {len(images[-1])} images of "
                f"{image_path.name}; get both files again from one place."
            )
        names += [f"{split}/{item}" for item in range(len(labels[-1]))]
        splits += [split] * len(labels[-1])
    if images[0].shape[1:] != images[1].shape[1:]:
        raise UserError(
            f"{title}: training images have {images[0].shape[1:]} pixels and test images {images[1].shape[1:]}; "
            f"the files in {root} are not of one data set."
        )
    return RawDataset(
        images=np.concatenate(images)[:, None],
        classes=classes,
        title=title,
        origin=origin,
        licence=licence,
        made=False,
        labels=np.concatenate(labels).astype(np.int64),
        names=names,
        official_split=np.array(splits),
        notes=notes,
    )


def _paths(root: Path, published: type[MNIST], title: str, download: bool) -> dict[str, Path]:
    """Find each of the four files, by its name without `.gz`; what is nowhere is fetched."""
    require_root(root)
    folders = [root, root / "raw", root / published.__name__ / "raw"]
    names = [name.removesuffix(".gz") for name, _ in published.resources]
    found = {name: _find(folders, name) for name in names}
    wanted = [
        OfficialFile(name, md5, tuple(f"{mirror}{name}" for mirror in published.mirrors))
        for name, md5 in published.resources
        if found[name.removesuffix(".gz")] is None
    ]
    fetch(root, wanted, title, allowed=download)
    return {name: path or root / f"{name}.gz" for name, path in found.items()}


def _find(folders: list[Path], name: str) -> Path | None:
    dotted = name.replace("-idx", ".idx")  # as some programs unpack them
    spellings = [f"{stem}{ending}" for stem in (name, dotted) for ending in ("", ".gz")]
    return next((folder / file for folder in folders for file in spellings if (folder / file).exists()), None)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: of the file.
        dimensions: that it must have; 3 for images, 1 for labels.

    Raises:
        UserError: it is another file, or has more or fewer values than its header says.
    """
    content = read_file(path)
    magic, start = bytes([0, 0, UNSIGNED_BYTES, dimensions]), 4 + 4 * dimensions
    if content[:4] != magic:
        found = f"starts with 0x{content[:4].hex()}" if content else "is empty"
        raise UserError(
            f"{printable(path)} is no IDX file of {'images' if dimensions == 3 else 'labels'}: it {found} and must "
            f"start with 0x{magic.hex()}. {GET_AGAIN}"
        )
    if len(content) < start:
        raise UserError(f"{printable(path)} is cut off within its header, after {len(content)} bytes. {GET_AGAIN}")
    shape = [int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4)]
    if math.prod(shape) != len(content) - start:
        raise UserError(
            f"{printable(path)} is damaged: its header announces {' x '.join(map(str, shape))} = {math.prod(shape)} "
            f"values, and {len(content) - start} follow. {GET_AGAIN}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
