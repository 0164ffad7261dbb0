"""CIFAR-10 and CIFAR-100: colour images of 32 x 32 pixels, in pickled batches or in binary ones.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). In `root`, or `root` itself:

    cifar-10-batches-py/    or  cifar-10-python.tar.gz         cifar-100-python/   or  cifar-100-python.tar.gz
    cifar-10-batches-bin/   or  cifar-10-binary.tar.gz         cifar-100-binary/   or  cifar-100-binary.tar.gz

A pickle may run any program when it is read. These are read by an unpickler that knows numbers, text, lists, dicts and
the form in which numpy writes an array of bytes, and refuses all else; numpy itself is never handed their content.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.archives import GET_AGAIN, printable, read_file, read_members
from convatlas.data.fetching import OfficialFile, check, fetch, require_root
from convatlas.data.raw import RawDataset

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

__all__ = ["load_cifar10", "load_cifar100"]

SHAPE = (3, 32, 32)
PIXELS = math.prod(SHAPE)
ORIGIN = "A. Krizhevsky, V. Nair and G. Hinton (2009); a labelled part of the 80 Million Tiny Images"
LICENCE = "none stated; for research, citing the technical report of 2009"
NOTES = [
    "The creators of 80 Million Tiny Images withdrew that set in 2020, because some of its words and pictures offend.",
    "3.3 % of CIFAR-10's test images and 10 % of CIFAR-100's nearly repeat training images (arXiv:1902.00423).",
]


@dataclass
class _Batch:
    """One file: images `(n, 3, 32, 32)`, labels `(n,)` by their kind, names where the file has any."""

    where: str
    """How to speak of the file."""
    images: NDArray[np.uint8]
    labels: dict[str, NDArray[np.int64]]
    names: list[str] | None


@dataclass(frozen=True)
class _Form:
    """One form in which a set is published: a folder, or the archive of that folder."""

    folder: str
    archive: OfficialFile
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: dict[str, str]
    """Files with the names of the classes, by the kind of label; a pickle holds both kinds."""
    md5: dict[str, str]
    """Checksums of the files in the folder, where they are known."""
    read_batch: Callable[[bytes, str], _Batch]
    read_names: Callable[[bytes, str, str], list[str]]

    @property
    def files(self) -> list[str]:
        return [*self.train, *self.test, *dict.fromkeys(self.names.values())]


def load_cifar10(
    root: Path, *, classes: Sequence[str] | None = None, download: bool = True, verify: bool = True
) -> RawDataset:
    """Read CIFAR-10 in whichever form is there, and download it where none is.

    Args:
        root: see the head of this file.
        classes: names, in the order in which their numbers shall rise; images of other classes are left out.
        download: fetch `cifar-10-python.tar.gz` (163 MiB) if nothing is there.
        verify: compare the files with the official checksums.

    Raises:
        UserError: a file is missing and cannot be had, is not the official one, is refused, or is damaged; `classes`
            are not two or more of the ten.
    """
    from torchvision.datasets import CIFAR10

    pickled = _pickled(CIFAR10, {"labels": CIFAR10.meta["filename"]})
    binary = _Form(
        folder="cifar-10-batches-bin",
        archive=OfficialFile("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test=("test_batch.bin",),
        names={"labels": "batches.meta.txt"},
        md5={
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
        },
        read_batch=lambda content, where: _read_binary(content, where, ("labels",)),
        read_names=_read_text_names,
    )
    whole = _load(root, (pickled, binary), "labels", "CIFAR-10", download=download, verify=verify)
    return whole if classes is None else _with_classes(whole, list(classes))


def load_cifar100(
    root: Path, *, labels: Literal["fine", "coarse"] = "fine", download: bool = True, verify: bool = True
) -> RawDataset:
    """Read CIFAR-100; the other arguments and errors are those of `load_cifar10`.

    Args:
        root: see the head of this file.
        labels: the 100 classes, or the 20 groups of five classes each.
        download: fetch `cifar-100-python.tar.gz` (161 MiB) if nothing is there.
        verify: compare the files with the official checksums.

    Raises:
        UserError: as `load_cifar10`; `labels` is another word.
    """
    from torchvision.datasets import CIFAR100

    if labels not in {"fine", "coarse"}:
        raise UserError(f"data.source.labels={labels} must be fine, for 100 classes, or coarse, for 20.")
    pickled = _pickled(CIFAR100, dict.fromkeys(("fine_labels", "coarse_labels"), CIFAR100.meta["filename"]))
    binary = _Form(
        folder="cifar-100-binary",
        archive=OfficialFile("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        train=("train.bin",),
        test=("test.bin",),
        names={"fine_labels": "fine_label_names.txt", "coarse_labels": "coarse_label_names.txt"},
        md5={"train.bin": "6172c7755cfe09b2fe270c85cebc1b15", "test.bin": "4499cfba6c016c1be1438163640a0898"},
        read_batch=lambda content, where: _read_binary(content, where, ("coarse_labels", "fine_labels")),
        read_names=_read_text_names,
    )
    title = "CIFAR-100" if labels == "fine" else "CIFAR-100, its 20 superclasses"
    return _load(root, (pickled, binary), f"{labels}_labels", title, download=download, verify=verify)


def _pickled(published: type[CIFAR10], names: dict[str, str]) -> _Form:
    """Return the pickled form of a set, as torchvision knows it."""
    train, test, meta = dict(published.train_list), dict(published.test_list), published.meta
    return _Form(
        folder=published.base_folder,
        archive=OfficialFile(published.filename, published.tgz_md5, (published.url,)),
        train=tuple(train),
        test=tuple(test),
        names=names,
        md5=train | test | {meta["filename"]: meta["md5"]},
        read_batch=_read_pickled,
        read_names=_read_pickled_names,
    )


def _load(root: Path, forms: tuple[_Form, _Form], kind: str, title: str, *, download: bool, verify: bool) -> RawDataset:
    require_root(root)
    form = next((form for form in forms if _folder(root, form) or (root / form.archive.name).exists()), None)
    if form is None:
        form = forms[0]
        fetch(root, [form.archive], title, allowed=download)
    batches: dict[str, _Batch] = {}
    classes: list[str] = []
    for name, content, where in _contents(root, form, verify):
        if name == form.names[kind]:
            classes = form.read_names(content, where, kind)
        elif name in (*form.train, *form.test):
            batches[name] = form.read_batch(content, where)
    ordered = {name: batches[name] for name in (*form.train, *form.test)}
    return RawDataset(
        images=np.concatenate([batch.images for batch in ordered.values()]),
        classes=classes,
        title=title,
        origin=ORIGIN,
        licence=LICENCE,
        made=False,
        labels=np.concatenate([_labels(batch, kind) for batch in ordered.values()]),
        names=[item for name, batch in ordered.items() for item in _names(name, batch)],
        official_split=np.repeat(
            ["train" if name in form.train else "test" for name in ordered],
            [len(batch.images) for batch in ordered.values()],
        ),
        notes=NOTES,
    )


def _with_classes(whole: RawDataset, classes: list[str]) -> RawDataset:
    """Keep the images of some classes, which are numbered in the order given."""
    if len(classes) < 2 or len(set(classes)) < len(classes) or not set(classes) <= set(whole.classes):
        raise UserError(f"data.source.classes={classes} must be two or more of {', '.join(whole.classes)}, each once.")
    assert whole.labels is not None
    numbers = np.full(len(whole.classes), -1, dtype=np.int64)
    numbers[[whole.classes.index(name) for name in classes]] = np.arange(len(classes))
    labels = numbers[whole.labels]
    kept = whole.take(np.flatnonzero(labels >= 0))
    return replace(kept, classes=classes, labels=labels[labels >= 0])


# ---- files ----------------------------------------------------------------------------------------------------------


def _folder(root: Path, form: _Form) -> Path | None:
    """Return the folder that holds files of this form, which may be `root` itself; one file is enough."""
    folders = (root / form.folder, root)
    return next((folder for folder in folders if any((folder / name).exists() for name in form.files)), None)


def _contents(root: Path, form: _Form, verify: bool) -> Iterator[tuple[str, bytes, str]]:
    """Yield name and content of each file, and how to speak of it, from the folder or from the archive."""
    folder = _folder(root, form)
    if folder is not None:
        for name in form.files:
            path = folder / name
            if not path.exists():
                raise UserError(
                    f"{folder} has no {name}; unpack {form.archive.name} again, or put the archive there in place of "
                    "the folder."
                )
            if verify and name in form.md5:
                check(path, OfficialFile(name, form.md5[name]))
            yield name, read_file(path), printable(path)
        return
    archive = root / form.archive.name
    if verify:
        check(archive, form.archive)
    for member, content in read_members(archive, [f"{form.folder}/{name}" for name in form.files]):
        name = member.rpartition("/")[2]
        yield name, content, f"{printable(archive)}: {name}"


# ---- pickles --------------------------------------------------------------------------------------------------------


class _Array:
    """Stands for `numpy.ndarray` in a pickle: keeps the state that the real one would be rebuilt from."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def values(self) -> NDArray[np.uint8]:
        """Return the array.

        Raises:
            ValueError: it is not one of unsigned bytes, in rows, as long as its shape says.
        """
        _, shape, dtype, columns_first, content = self.state
        if not isinstance(dtype, _Dtype) or dtype.name not in {"u1", "uint8"} or columns_first:
            raise ValueError("its array is not one of unsigned bytes in rows")
        if not isinstance(content, bytes):
            raise ValueError("its array has no bytes")
        return np.frombuffer(content, np.uint8).reshape([int(size) for size in shape])


class _Dtype:
    """Stands for `numpy.dtype` in a pickle."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        """Do nothing: byte order and the like say nothing about bytes."""


class _Unpickler(pickle.Unpickler):
    """Reads what a batch is made of and nothing else: no name in the file leads to any other code than this file's."""

    # numpy 2 writes numpy._core; Python 3 writes bytes as _codecs.encode of text in pickles of protocol 2.
    admitted = {  # noqa: RUF012 - a constant
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for an admitted name.

        Raises:
            pickle.UnpicklingError: any other name.
        """
        if (module, name) not in self.admitted:
            raise _RefusedError(f"{module}.{name}")
        return self.admitted[module, name]


class _RefusedError(pickle.UnpicklingError):
    """A pickle asks for a name that no batch needs."""


def _unpickle(content: bytes, where: str) -> dict[str, Any]:
    try:
        entries = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in entries.items()}
    except _RefusedError as error:
        raise UserError(
            f"{where} is refused: it asks for {printable(str(error))}, and a batch of CIFAR needs arrays, lists and "
            f"text alone. Do not open it with another program. {GET_AGAIN}"
        ) from error
    except Exception as error:  # a damaged pickle raises nearly every kind
        _damaged(where, f"it cannot be read as a pickle ({type(error).__name__})", error)


def _read_pickled(content: bytes, where: str) -> _Batch:
    entries = _unpickle(content, where)
    try:
        images = entries["data"].values()
        images = images.reshape(len(images), *SHAPE)
        labels: dict[str, NDArray[np.int64]] = {
            kind: np.array(entries[kind], dtype=np.int64).reshape(len(images))
            for kind in ("labels", "fine_labels", "coarse_labels")
            if kind in entries
        }
        names = [_text(name) for name in entries.get("filenames", ())]
    except KeyError as error:
        _damaged(where, f"it has no entry {error}", error)
    except Exception as error:  # the entries may be of any type
        _damaged(where, "its images and labels do not fit together", error)
    return _Batch(where, images, labels, names if len(names) == len(images) else None)


def _read_pickled_names(content: bytes, where: str, kind: str) -> list[str]:
    entry = kind.replace("labels", "label_names")
    try:
        return [_text(name) for name in _unpickle(content, where)[entry]]
    except (KeyError, TypeError, AttributeError) as error:
        _damaged(where, f"it has no list {entry}", error)


def _text(name: bytes | str) -> str:
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name


# ---- binary files ---------------------------------------------------------------------------------------------------


def _read_binary(content: bytes, where: str, kinds: tuple[str, ...]) -> _Batch:
    """Read records of one byte for each kind of label and then the pixels."""
    length = len(kinds) + PIXELS
    if not content or len(content) % length:
        _damaged(where, f"it has {len(content)} bytes, and its records have {length} each")
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    labels = {kind: records[:, column].astype(np.int64) for column, kind in enumerate(kinds)}
    return _Batch(where, records[:, len(kinds) :].reshape(-1, *SHAPE), labels, None)


def _read_text_names(content: bytes, where: str, kind: str) -> list[str]:
    names = [line.strip() for line in content.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
    if not names:
        _damaged(where, f"it has no names for {kind}")
    return names


# ---- both -----------------------------------------------------------------------------------------------------------


def _labels(batch: _Batch, kind: str) -> NDArray[np.int64]:
    if kind not in batch.labels:
        _damaged(batch.where, f"it has no {kind}; it may be a file of the other CIFAR")
    return batch.labels[kind]


def _names(file: str, batch: _Batch) -> list[str]:
    return [f"{file}/{name}" for name in batch.names or range(len(batch.images))]


def _damaged(where: str, complaint: str, cause: Exception | None = None) -> NoReturn:
    raise UserError(f"{where} is damaged: {complaint}. {GET_AGAIN}") from cause
