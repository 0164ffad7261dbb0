"""Classification sets of torchvision, downloaded and read by torchvision itself.

    data=torchvision data.source.dataset=Flowers102

Where a set has a validation split it joins the training split, and `data.split.validation` cuts validation anew.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convatlas.core.errors import UserError, near_matches
from convatlas.data.image_files import LibraryImages
from convatlas.data.raw import RawDataset

__all__ = ["load"]

TRAINING_SPLITS = {
    "Country211": ("train", "valid"),
    "DTD": ("train", "val"),
    "FER2013": ("train",),
    "FGVCAircraft": ("trainval",),
    "Flowers102": ("train", "val"),
    "Food101": ("train",),
    "GTSRB": ("train",),
    "OxfordIIITPet": ("trainval",),
    "PCAM": ("train", "val"),
    "RenderedSST2": ("train", "val"),
    "STL10": ("train",),
    "StanfordCars": ("train",),
    "SVHN": ("train",),
}
"""What is trained on, of the sets whose class takes the name of a split; each has a split `test` as well."""
LABELS = ("targets", "labels", "_labels")
"""Attributes under which torchvision keeps the class numbers."""


def load(
    root: Path,
    *,
    dataset: str,
    options: Mapping[str, Any] | None = None,
    download: bool = True,
    licence: str = "as its makers state it",
) -> RawDataset:
    """Read a set of torchvision; a picture is decoded when it is asked for.

    Args:
        root: where torchvision looks for the files and downloads them to.
        dataset: name of a class in `torchvision.datasets`.
        options: further arguments of the class, for example `{split: letters}` of EMNIST.
        download: let torchvision fetch what is missing.
        licence: for the data card.

    Raises:
        UserError: there is no such set, it has no classes or no files, or they cannot be downloaded.
    """
    from torchvision import datasets

    kind = getattr(datasets, dataset, None)
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset)):
        raise UserError(
            f"data.source.dataset={dataset}: torchvision has no such set. {near_matches(dataset, datasets.__all__)}"
        )
    parameters = inspect.signature(kind.__init__).parameters
    given = {**({"root": str(root)} if "root" in parameters else {}), **dict(options or {})}
    if "download" in parameters or dataset == "EMNIST":  # which takes more than its signature says
        given["download"] = download
    parts = [_open(kind, given | choice, root) for choice in _splits(dataset, parameters, given)]
    labels, classes = _labels(parts, dataset)
    counts = [len(part) for part in parts]
    ends = np.cumsum(counts)
    names = [f"{dataset}/{number:06d}" for number in range(ends[-1])]

    def read_one(item: int) -> bytes:
        part = int(np.searchsorted(ends, item, side="right"))
        picture = parts[part][item - int(ends[part]) + counts[part]][0]
        return _as_file(picture)

    tested = counts[-1] if len(parts) > 1 else 0
    return RawDataset(
        images=LibraryImages(names, read_one, f"{dataset} {sorted(given.items())} {counts}"),
        classes=classes,
        title=f"{dataset} of torchvision",
        origin=f"torchvision.datasets.{dataset}",
        licence=licence,
        made=dataset == "FakeData",
        labels=labels,
        names=names,
        official_split=np.repeat(["train", "test"], [ends[-1] - tested, tested]) if tested else None,
    )


def _splits(name: str, parameters: Mapping[str, Any], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments that choose each training split and, last, the test split; one alone where there is none."""
    if name in TRAINING_SPLITS and "split" not in given:
        return [{"split": split} for split in (*TRAINING_SPLITS[name], "test")]
    if "train" not in given and ("train" in parameters or name == "EMNIST"):
        return [{"train": True}, {"train": False}]
    return [{}]


def _open(kind: Any, given: Mapping[str, Any], root: Path) -> Any:
    """Open a split; torchvision downloads it where it may.

    Raises:
        UserError: it cannot.
    """
    title = f"{kind.__name__} of torchvision"
    try:
        found = kind(**given)
    except TypeError as error:
        raise UserError(f"data.source.options: {title} does not take them ({error}); correct them.") from error
    except ModuleNotFoundError as error:
        raise UserError(f"{title} needs the package {error.name}: `pip install {error.name}` adds it.") from error
    except (RuntimeError, OSError, ValueError) as error:  # torchvision's of missing files, urllib's of the network
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise UserError(
            f"{title} is not in {root} and cannot be had from its makers ({reason}); put its files there as "
            "torchvision wants them, set data.root, or correct data.source.options."
        ) from error
    if not len(found):
        raise UserError(f"{title}: {root} holds no image of it; put the files there, or set data.root.")
    return found


def _labels(parts: Sequence[Any], dataset: str) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[str]]:
    """Return the class numbers of all images, and the names of the classes.

    Raises:
        UserError: the set has something else than one class for each image.
    """
    numbers = np.concatenate([_numbers(part) for part in parts])
    if numbers.dtype.kind not in "iu":
        raise UserError(f"data.source.dataset={dataset} has no class for each image; take a classification set.")
    values = np.unique(numbers)
    listed = getattr(parts[0], "classes", None) or getattr(parts[0], "categories", None)
    names = [str(name) for name in listed] if listed and values[-1] < len(listed) else list(map(str, values))
    if len(names) != len(listed or ()):  # numbers with gaps, such as EMNIST's letters from 1 on
        numbers = np.searchsorted(values, numbers)
    if len(set(names)) < len(names):
        names = [f"{name} {number}" if names.count(name) > 1 else name for number, name in enumerate(names)]
    return numbers.astype(np.int64), names


def _numbers(part: Any) -> np.ndarray[Any, Any]:
    for name in LABELS:
        found = getattr(part, name, None)
        if found is not None and len(found) == len(part):
            return np.asarray(found)
    return np.array([part[item][1] for item in range(len(part))])


def _as_file(picture: Any) -> bytes:
    """Return a picture as torchvision gives it as the bytes of a PNG."""
    if not isinstance(picture, Image.Image):
        raise ValueError(f"torchvision gives {type(picture).__name__}, no picture")
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
