"""Raw files damaged in every way that has a name: each ends in one sentence or in a counted rejection.

A case is a whole data set in the format of its makers, one damage, and what the preparation must say. After each, the
raw folder is as it was, byte by byte, and of a refused data set nothing is left where the prepared one would be.
"""

from __future__ import annotations

import gzip
import inspect
import os
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raw_files import (
    DEVKIT,
    KINDS,
    cifar10_batches,
    idx,
    pixels,
    python2_pickle,
    save,
    tar_of_folder,
    tree,
    write_cifar10,
    write_cifar10_binary,
    write_class_folders,
    write_imagenet,
    write_mnist,
    write_simpsons,
    write_svhn,
    write_tar,
)

from convatlas.core.config import DataConfig
from convatlas.core.errors import UserError
from convatlas.data import archives
from convatlas.data.card import Card
from convatlas.data.prepare_dataset import prepare

Patch = pytest.MonkeyPatch
Do = Callable[[Path], object]
"""Damages the raw folder that it is given."""
Machine = Callable[[Path, Patch], None]
"""Leaves the files as they are and lets the machine fail."""


# ---- what comes of it -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """The preparation ends in a `UserError` that holds these words; ` ... ` stands for any others."""

    words: str


@dataclass(frozen=True)
class Rejected:
    """The preparation goes on without `count` items, which the card names with this reason."""

    words: str
    count: int = 1


@dataclass(frozen=True)
class Converted:
    """The image is used, and the card counts what was done to it."""

    how: str


@dataclass(frozen=True)
class Harmless:
    """Everything is used."""


# ---- data sets before the damage ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """A data set that would be prepared without a word."""

    write: Callable[[Path], object]
    load: str
    channels: int
    classes: int
    options: dict[str, Any] = field(default_factory=dict)
    test: float = 0.0
    files: bool = False


def cifar_archive(root: Path) -> None:
    folder = write_cifar10(root / "cifar-10-batches-py")
    tar_of_folder(root / "cifar-10-python.tar.gz", folder)
    shutil.rmtree(folder)


def write_split_folders(root: Path) -> None:
    for seed, part in enumerate(("train", "test")):
        write_class_folders(root / part, {"cat": 8, "dog": 8}, seed)


OFFLINE = {"download": False, "verify": False}
CIFAR = "convatlas.data.sources.cifar.load_cifar10"
FOLDER = "convatlas.data.sources.image_folder.load"
BASES = {
    "mnist": Base(write_mnist, "convatlas.data.sources.mnist.load_mnist", 1, 10, OFFLINE),
    "cifar": Base(lambda root: write_cifar10(root / "cifar-10-batches-py"), CIFAR, 3, 10, OFFLINE),
    "cifar_binary": Base(lambda root: write_cifar10_binary(root / "cifar-10-batches-bin"), CIFAR, 3, 10, OFFLINE),
    "cifar_archive": Base(cifar_archive, CIFAR, 3, 10, OFFLINE),
    "svhn": Base(write_svhn, "convatlas.data.sources.svhn.load", 3, 10, OFFLINE),
    "imagenet": Base(write_imagenet, "convatlas.data.sources.imagenet.load", 3, 3, {"verify": False}, files=True),
    "imagenet_archive": Base(
        lambda root: write_imagenet(root, devkit="archive"),
        "convatlas.data.sources.imagenet.load",
        3,
        3,
        {"verify": False},
        files=True,
    ),
    "folder": Base(lambda root: write_class_folders(root, {"cat": 12, "dog": 12}), FOLDER, 3, 2, test=0.25, files=True),
    "split_folder": Base(
        write_split_folders,
        FOLDER,
        3,
        2,
        files=True,
    ),
    "simpsons": Base(
        write_simpsons,
        FOLDER,
        3,
        3,
        {"train": "simpsons_dataset", "test": "kaggle_simpson_testset", "test_pattern": r"^(.+)_\d+\."},
        files=True,
    ),
}


def config(name: str, folder: Path, **options: Any) -> DataConfig:
    base = BASES[name]
    return DataConfig(
        name=name,
        task="classification",
        source={"_target_": base.load, **base.options, **options},
        root=folder / "raw",
        prepared=folder / "prepared" / name,
        image_size=8,
        in_channels=base.channels,
        num_classes=base.classes,
        storage="arrays",
        stored_side=8 if base.files else None,
        split={"validation": 0.25, "test": base.test, "seed": 0},
    )


# ---- damages --------------------------------------------------------------------------------------------------------

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
BATCH = "cifar-10-batches-py/data_batch_3"
CIFAR_TAR = "cifar-10-python.tar.gz"
META, TRUTH = f"{DEVKIT}/data/meta.mat", f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
PAGE = b"<!doctype html><html><body>Please log in to download this file.</body></html>"


def cut(name: str, keep: float) -> Do:
    """Keep a part of a file."""

    def do(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: int(len(content) * keep)])

    return do


def flip(name: str, position: int) -> Do:
    """Change one byte."""

    def do(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        content[position] ^= 0xFF
        (root / name).write_bytes(content)

    return do


def put(name: str, content: bytes) -> Do:
    return lambda root: (root / name).write_bytes(content)


def gone(name: str) -> Do:
    return lambda root: (root / name).unlink() if (root / name).is_file() else shutil.rmtree(root / name)


def in_its_place(name: str) -> Do:
    """Put a folder where the file was."""

    def do(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return do


def forbidden(name: str) -> Machine:
    """Let nobody read a file or folder; an administrator's account, which tests may have, may read everything."""

    def do(root: Path, patch: Patch) -> None:
        def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
            def guard(path: Any = ".", *arguments: Any, **named: Any) -> Any:
                if Path(path) == root / name:
                    raise PermissionError(13, "Permission denied", str(path))
                return function(path, *arguments, **named)

            return guard

        patch.setattr(Path, "open", guarded(Path.open))
        patch.setattr(os, "scandir", guarded(os.scandir))

    return do


def idx_bytes(name: str, change: Callable[[bytes], bytes]) -> Do:
    def do(root: Path) -> None:
        (root / name).write_bytes(gzip.compress(change(gzip.decompress((root / name).read_bytes()))))

    return do


def count_in_header(count: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:4] + struct.pack(">I", count) + content[8:]


def train_image(values: Callable[[np.ndarray], np.ndarray]) -> Do:
    """Change the first training image of MNIST; the function gets the first test image."""

    def do(root: Path) -> None:
        images = pixels(40, 28, 28, seed=0)
        images[0] = values(pixels(20, 28, 28, seed=1)[0])
        (root / TRAIN_IMAGES).write_bytes(gzip.compress(idx(images)))

    return do


def batch(**changes: Any) -> Do:
    """Change entries of the third batch of CIFAR-10; None removes one."""

    def do(root: Path) -> None:
        entries = cifar10_batches()["data_batch_3"] | {key.encode(): value for key, value in changes.items()}
        (root / BATCH).write_bytes(python2_pickle({key: value for key, value in entries.items() if value is not None}))

    return do


class Runs:
    """A pickle of it calls a function with one text."""

    def __init__(self, function: Callable[[str], Any], text: str) -> None:
        self.function, self.text = function, text

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, (self.text,)


def malicious(function: Callable[[str], Any], protocol: int = 2) -> Do:
    """Put a batch that makes a file when it is unpickled blindly; `tree` would find it."""

    def do(root: Path) -> None:
        text = f"open({str(root / 'harmed')!r}, 'w')" if function is eval else f"touch {root / 'harmed'}"
        (root / BATCH).write_bytes(pickle.dumps(Runs(function, text), protocol=protocol))

    return do


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Do:
    """Put a member before the others in CIFAR's archive."""

    def do(root: Path) -> None:
        with tarfile.open(root / CIFAR_TAR) as archive:
            members = [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
        bad = tarfile.TarInfo(name)
        bad.type, bad.linkname = kind, link
        write_tar(root / CIFAR_TAR, [(bad, b""), *members])

    return do


def without_member(root: Path) -> None:
    folder = write_cifar10(root / "cifar-10-batches-py")
    (folder / "data_batch_4").unlink()
    tar_of_folder(root / CIFAR_TAR, folder)
    shutil.rmtree(folder)


def small_limit(_: Path, patch: Patch) -> None:
    """Take files that unpack to more than 10,000 bytes for bombs, which would take long to write in earnest."""
    patch.setattr(archives, "LARGEST", 10_000)


def mat(**variables: np.ndarray) -> Do:
    from scipy.io import savemat

    def do(root: Path) -> None:
        savemat(root / "train_32x32.mat", variables)

    return do


def svhn_labels(count: int = 20, first: int = 1) -> np.ndarray:
    labels = (np.arange(count) % 10 + 1).astype(np.uint8)
    labels[0] = first
    return labels[:, None]


def devkit_outside(root: Path) -> None:
    write_tar(root / f"{DEVKIT}.tar.gz", [(tarfile.TarInfo(f"{DEVKIT}/../../meta.mat"), b"")])


def picture(write: Callable[[Path], object], name: str = "cat/pic_0003.png") -> Do:
    """Write a picture anew; the function gets its path."""
    return lambda root: write(root / name)


def saved_as(mode: str, **options: Any) -> Callable[[Path], object]:
    """Write random pixels of a mode of Pillow's."""
    return lambda path: Image.fromarray(pixels(20, 20, 3, seed=9)).convert(mode).save(path, **options)


def sixteen_bits(path: Path) -> None:
    Image.fromarray(pixels(20, 20).astype(np.uint16) * 257).save(path)


def floats(path: Path) -> None:
    Image.fromarray(pixels(20, 20).astype(np.float32)).save(path, format="TIFF")


def claims_to_be_huge(path: Path) -> None:
    """Write a PNG of 60,000 x 60,000 pixels by its header."""
    import zlib

    save(path, pixels(4, 4, 3))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)


def animation(path: Path) -> None:
    frames = [Image.fromarray(pixels(9, 9, 3, seed=seed)) for seed in range(3)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(20, 30, 3)).save(path, format="JPEG", exif=exif)


def jpeg(path: Path) -> None:
    Image.fromarray(pixels(30, 30, 3, seed=9)).save(path, format="JPEG")


def jpeg_without_its_end(path: Path) -> None:
    jpeg(path)
    path.write_bytes(path.read_bytes()[:-300])


def png_with_bad_checksum(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[29] ^= 0xFF  # the checksum of the header
    path.write_bytes(content)


def png_with_bad_data(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 0xFF
    path.write_bytes(content)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def loop(root: Path) -> None:
    (root / "cat" / "again").symlink_to("..")


def leaked(root: Path) -> None:
    shutil.copy(root / "test" / "cat" / "pic_0001.png", root / "train" / "cat" / "pic_0001.png")


def odd_name(name: bytes) -> Do:
    return lambda root: (root / "cat" / os.fsdecode(name)).write_bytes(b"no picture")


def lines(name: str, change: Callable[[list[str]], list[str]]) -> Do:
    def do(root: Path) -> None:
        (root / name).write_text("\n".join(change((root / name).read_text().splitlines())) + "\n")

    return do


def unknown_kind(root: Path) -> None:
    (root / "train" / KINDS[0]).rename(root / "train" / "n99999999")


def loose_pictures(root: Path) -> None:
    for path in list(root.glob("*/*.png")):
        path.rename(root / f"{path.parent.name}_{path.name}")
    for folder in ("cat", "dog"):
        (root / folder).rmdir()


def no_picture_in(name: str) -> Do:
    def do(root: Path) -> None:
        for path in (root / name).iterdir():
            path.unlink()

    return do


DAMAGES: dict[str, tuple[str, Do | Machine, Refused | Rejected | Converted | Harmless]] = {
    # IDX
    "idx: truncated gzip": (
        "mnist",
        cut(TRAIN_IMAGES, 0.6),
        Refused(f"{TRAIN_IMAGES} is damaged or cut off (Compressed file ended before"),
    ),
    "idx: a changed byte in the gzip": (
        "mnist",
        flip(TRAIN_IMAGES, -6),
        Refused(f"{TRAIN_IMAGES} is damaged or cut off (CRC check failed"),
    ),
    "idx: wrong magic": (
        "mnist",
        idx_bytes(TRAIN_IMAGES, lambda content: b"\x01" + content[1:]),
        Refused("it starts with 0x01000803 and must start with 0x00000803"),
    ),
    "idx: numbers of another type": (
        "mnist",
        idx_bytes(TRAIN_IMAGES, lambda content: b"\0\0\x0d\x03" + content[4:]),
        Refused("starts with 0x00000d03"),
    ),
    "idx: labels where images belong": (
        "mnist",
        put(TRAIN_IMAGES, gzip.compress(idx(np.zeros(40, np.uint8)))),
        Refused("starts with 0x00000801"),
    ),
    "idx: header counts too many": (
        "mnist",
        idx_bytes(TRAIN_IMAGES, count_in_header(41)),
        Refused("announces 41 x 28 x 28 = 32144 values, and 31360 follow"),
    ),
    "idx: header counts four billion": (
        "mnist",
        idx_bytes(TRAIN_IMAGES, count_in_header(2**32 - 1)),
        Refused("announces 4294967295 x 28 x 28"),
    ),
    "idx: header counts too few": (
        "mnist",
        idx_bytes(TRAIN_IMAGES, count_in_header(39)),
        Refused("announces 39 x 28 x 28 = 30576 values, and 31360 follow"),
    ),
    "idx: nothing after the magic": (
        "mnist",
        put(TRAIN_LABELS, idx(np.zeros(3, np.uint8))[:6]),
        Refused(f"{TRAIN_LABELS} is cut off within its header, after 6 bytes"),
    ),
    "idx: labels fewer than images": (
        "mnist",
        put(TRAIN_LABELS, idx(np.arange(39, dtype=np.uint8) % 10)),
        Refused(f"{TRAIN_LABELS} has 39 labels for the 40 images of {TRAIN_IMAGES}"),
    ),
    "idx: label out of range": (
        "mnist",
        put(TRAIN_LABELS, idx(np.array([*range(10)] * 3 + [*range(9), 77], np.uint8))),
        Rejected("label 77 is outside 0..9"),
    ),
    "idx: a file of zero bytes": (
        "mnist",
        put(TRAIN_IMAGES, b""),
        Refused(f"{TRAIN_IMAGES} is no IDX file of images: it is empty"),
    ),
    "idx: a web page in its place": ("mnist", put(TRAIN_IMAGES, PAGE), Refused("starts with 0x3c21646f")),
    "idx: a file missing": ("mnist", gone(TEST_IMAGES), Refused(f"MNIST: {TEST_IMAGES} not found in")),
    "idx: a folder in its place": (
        "mnist",
        in_its_place(TEST_IMAGES),
        Refused(f"{TEST_IMAGES} cannot be read: Is a directory"),
    ),
    "idx: unreadable permission": (
        "mnist",
        forbidden(TEST_IMAGES),
        Refused(f"{TEST_IMAGES} cannot be read: Permission denied"),
    ),
    "idx: test images of another size": (
        "mnist",
        put(TEST_IMAGES, idx(pixels(20, 20, 20))),
        Refused("training images have (28, 28) pixels and test images (20, 20)"),
    ),
    "idx: an image of one colour": (
        "mnist",
        train_image(lambda _: np.full((28, 28), 9, np.uint8)),
        Rejected("every pixel has the value 9"),
    ),
    "idx: a test image among the training": (
        "mnist",
        train_image(lambda test: test),
        Rejected("the same image is test/0, of the official test split"),
    ),
    "idx: unpacks without end": ("mnist", small_limit, Refused("is refused: it unpacks to more than")),
    # CIFAR's pickles
    "pickle: runs a program": (
        "cifar",
        malicious(os.system),
        Refused("data_batch_3 is refused: it asks for posix.system"),
    ),
    "pickle: evaluates code": (
        "cifar",
        malicious(eval, 4),
        Refused("data_batch_3 is refused: it asks for builtins.eval"),
    ),
    "pickle: another name of numpy's": (
        "cifar",
        put(BATCH, pickle.dumps(np.float64(3))),
        Refused("data_batch_3 is refused: it asks for numpy"),
    ),
    "pickle: asks for what lies outside": (
        "cifar",
        put(BATCH, b"\x80\x02X\x01\x00\x00\x00aQ."),
        Refused("data_batch_3 is damaged: it cannot be read as a pickle (UnpicklingError)"),
    ),
    "pickle: truncated": ("cifar", cut(BATCH, 0.5), Refused("data_batch_3 is damaged: it cannot be read as a pickle")),
    "pickle: zero bytes": (
        "cifar",
        put(BATCH, b""),
        Refused("data_batch_3 is damaged: it cannot be read as a pickle (EOFError)"),
    ),
    "pickle: no dict": (
        "cifar",
        put(BATCH, pickle.dumps([1, 2])),
        Refused("data_batch_3 is damaged: it cannot be read as a pickle"),
    ),
    "pickle: images missing": ("cifar", batch(data=None), Refused("data_batch_3 is damaged: it has no entry 'data'")),
    "pickle: labels missing": (
        "cifar",
        batch(labels=None),
        Refused("data_batch_3 is damaged: it has no labels; it may be a file of the other CIFAR"),
    ),
    "pickle: rows too short": (
        "cifar",
        batch(data=pixels(10, 3000)),
        Refused("data_batch_3 is damaged: its images and labels do not fit together"),
    ),
    "pickle: numbers of another type": (
        "cifar",
        batch(data=pixels(10, 3072).astype(np.float64)),
        Refused("data_batch_3 is damaged: its images and labels do not fit"),
    ),
    "pickle: labels fewer than images": (
        "cifar",
        batch(labels=[1, 2, 3]),
        Refused("data_batch_3 is damaged: its images and labels do not fit"),
    ),
    "pickle: labels are words": (
        "cifar",
        batch(labels=[b"cat"] * 10),
        Refused("data_batch_3 is damaged: its images and labels do not fit"),
    ),
    "pickle: label out of range": ("cifar", batch(labels=[10, *range(1, 10)]), Rejected("label 10 is outside 0..9")),
    "pickle: a batch missing": (
        "cifar",
        gone(BATCH),
        Refused("has no data_batch_3; unpack cifar-10-python.tar.gz again"),
    ),
    "pickle: names missing": ("cifar", gone("cifar-10-batches-py/batches.meta"), Refused("has no batches.meta")),
    "pickle: names are another list": (
        "cifar",
        put("cifar-10-batches-py/batches.meta", python2_pickle({b"x": []})),
        Refused("batches.meta is damaged: it has no list label_names"),
    ),
    "pickle: a name twice": (
        "cifar",
        put("cifar-10-batches-py/batches.meta", python2_pickle({b"label_names": [b"cat"] * 10})),
        Refused("must be two or more different names"),
    ),
    "pickle: a name is empty": (
        "cifar",
        put(
            "cifar-10-batches-py/batches.meta", python2_pickle({b"label_names": [b"%d" % n for n in range(9)] + [b""]})
        ),
        Refused("must be two or more different names"),
    ),
    # CIFAR's binary files
    "binary: records cut": (
        "cifar_binary",
        cut("cifar-10-batches-bin/data_batch_2.bin", 0.55),
        Refused("data_batch_2.bin is damaged: it has 16901 bytes, and its records have 3073 each"),
    ),
    "binary: zero bytes": (
        "cifar_binary",
        put("cifar-10-batches-bin/test_batch.bin", b""),
        Refused("test_batch.bin is damaged: it has 0 bytes"),
    ),
    "binary: no names": (
        "cifar_binary",
        put("cifar-10-batches-bin/batches.meta.txt", b"\n\n"),
        Refused("batches.meta.txt is damaged: it has no names"),
    ),
    # archives
    "archive: truncated": (
        "cifar_archive",
        cut(CIFAR_TAR, 0.7),
        Refused(f"{CIFAR_TAR} is damaged or cut off (Compressed file ended before"),
    ),
    "archive: a changed byte": (
        "cifar_archive",
        flip(CIFAR_TAR, -6),
        Refused(f"{CIFAR_TAR} is damaged or cut off (CRC check failed"),
    ),
    "archive: a web page in its place": (
        "cifar_archive",
        put(CIFAR_TAR, PAGE),
        Refused(f"{CIFAR_TAR} is damaged or cut off"),
    ),
    "archive: zero bytes": (
        "cifar_archive",
        put(CIFAR_TAR, b""),
        Refused(f"{CIFAR_TAR} is damaged or cut off (empty file)"),
    ),
    "archive: a member missing": (
        "cifar_archive",
        without_member,
        Refused(f"{CIFAR_TAR} has no member cifar-10-batches-py/data_batch_4"),
    ),
    "archive: a member above it": (
        "cifar_archive",
        member("cifar-10-batches-py/../../evil"),
        Refused("../../evil lies outside the archive's folder"),
    ),
    "archive: an absolute member": (
        "cifar_archive",
        member("/tmp/evil"),
        Refused("its member /tmp/evil lies outside the archive's folder"),
    ),
    "archive: a symbolic link": (
        "cifar_archive",
        member("cifar-10-batches-py/data_batch_1", tarfile.SYMTYPE, "/etc/passwd"),
        Refused("data_batch_1 is a link or a device"),
    ),
    "archive: a hard link": (
        "cifar_archive",
        member("evil", tarfile.LNKTYPE, "../other"),
        Refused("its member evil is a link or a device"),
    ),
    "archive: a device": (
        "cifar_archive",
        member("evil", tarfile.CHRTYPE),
        Refused("its member evil is a link or a device"),
    ),
    "archive: a pipe": (
        "cifar_archive",
        member("evil", tarfile.FIFOTYPE),
        Refused("its member evil is a link or a device"),
    ),
    "archive: a member without end": (
        "cifar_archive",
        small_limit,
        Refused(f"{CIFAR_TAR} is refused: it unpacks to more than"),
    ),
    # SVHN
    "mat: truncated": (
        "svhn",
        cut("train_32x32.mat", 0.5),
        Refused("train_32x32.mat is damaged or"),
    ),
    "mat: zero bytes": (
        "svhn",
        put("train_32x32.mat", b""),
        Refused("train_32x32.mat is damaged or"),
    ),
    "mat: of version 7.3": (
        "svhn",
        put("train_32x32.mat", b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)),
        Refused("no MATLAB file of version 5 (NotImplementedError)"),
    ),
    "mat: a variable missing": (
        "svhn",
        mat(X=pixels(32, 32, 3, 20)),
        Refused("train_32x32.mat has no variables X and y"),
    ),
    "mat: another shape": (
        "svhn",
        mat(X=pixels(20, 3, 32, 32), y=svhn_labels()),
        Refused("X is uint8 of shape (20, 3, 32, 32) with 20 labels"),
    ),
    "mat: labels fewer than images": (
        "svhn",
        mat(X=pixels(32, 32, 3, 20), y=svhn_labels(19)),
        Refused("shape (32, 32, 3, 20) with 19 labels"),
    ),
    "mat: label out of range": (
        "svhn",
        mat(X=pixels(32, 32, 3, 20), y=svhn_labels(first=11)),
        Rejected("label 11 is outside 0..9"),
    ),
    # ImageNet
    "devkit: missing": ("imagenet", gone(DEVKIT), Refused(f"is missing; put {DEVKIT}.tar.gz into")),
    "devkit: ground truth missing": ("imagenet", gone(TRUTH), Refused("ground_truth.txt cannot be read: No such file")),
    "devkit: ground truth too short": (
        "imagenet",
        lines(TRUTH, lambda kept: kept[:-1]),
        Refused("has 5 lines, and none for ILSVRC2012_val_00000006.JPEG"),
    ),
    "devkit: ground truth of words": (
        "imagenet",
        lines(TRUTH, lambda kept: ["fish", *kept[1:]]),
        Refused("devkit_t12: ILSVRC2012_validation_ground_truth.txt is damaged: it must hold one number in each line"),
    ),
    "devkit: an unknown number": (
        "imagenet",
        lines(TRUTH, lambda kept: ["999", *kept[1:]]),
        Refused("line 1 of ILSVRC2012_validation_ground_truth.txt says 999, which meta.mat does not know"),
    ),
    "devkit: meta.mat truncated": ("imagenet", cut(META, 0.5), Refused("meta.mat is damaged: it cannot be read")),
    "devkit: archive truncated": (
        "imagenet_archive",
        cut(f"{DEVKIT}.tar.gz", 0.5),
        Refused(f"{DEVKIT}.tar.gz is damaged or cut off"),
    ),
    "devkit: a member above it": ("imagenet_archive", devkit_outside, Refused("lies outside the archive's folder")),
    "tree: an unknown wnid": (
        "imagenet",
        unknown_kind,
        Refused("n99999999 is no kind of ImageNet (ILSVRC 2012): name it by a wnid"),
    ),
    "tree: archives not unpacked": (
        "imagenet",
        put("train/n01440764.tar", b""),
        Refused("train holds archives; unpack each"),
    ),
    "tree: no validation": (
        "imagenet",
        gone("val"),
        Refused("there is no folder ... val. Its terms do not let a program fetch it"),
    ),
    "tree: another picture in val": (
        "imagenet",
        picture(jpeg, "val/holiday.jpeg"),
        Rejected("its name is not that of a validation picture"),
    ),
    "tree: an empty kind": ("imagenet", no_picture_in(f"train/{KINDS[1]}"), Refused(f"{KINDS[1]} holds no picture")),
    "tree: a truncated photograph": (
        "imagenet",
        cut(f"train/{KINDS[0]}/{KINDS[0]}_2.JPEG", 0.5),
        Rejected("it cannot be decoded: "),
    ),
    # class folders
    "folder: an empty class": ("folder", no_picture_in("dog"), Refused("dog holds no picture")),
    "folder: one class only": ("folder", gone("dog"), Refused("holds 1 class folder and 0 loose pictures")),
    "folder: no classes": ("folder", loose_pictures, Refused("holds 0 class folders and 24 loose pictures")),
    "folder: not there": ("folder", gone(""), Refused("there is no folder")),
    "folder: unreadable permission": ("folder", forbidden("dog"), Refused("dog cannot be read: Permission denied")),
    "folder: leads back to itself": ("folder", loop, Harmless()),
    "folder: a text among the pictures": (
        "folder",
        put("cat/readme.txt", b"cats"),
        Rejected("its name does not end as that of a picture"),
    ),
    "folder: copies in train and test": (
        "split_folder",
        leaked,
        Rejected("the same image is test/cat/pic_0001.png, of the official test split"),
    ),
    "folder: a class in the test alone": (
        "split_folder",
        lambda root: (root / "test" / "dog").rename(root / "test" / "dogs"),
        Refused("test/dogs is of a class without training pictures. Did you mean dog?"),
    ),
    "name: of no known class": (
        "simpsons",
        picture(jpeg, "kaggle_simpson_testset/kaggle_simpson_testset/lisa_simpson_1.jpg"),
        Rejected("its name says the class lisa_simpson, which has no training folder"),
    ),
    "name: without a class": (
        "simpsons",
        picture(jpeg, "kaggle_simpson_testset/kaggle_simpson_testset/img3.jpg"),
        Rejected("its name does not fit data.source.test_pattern"),
    ),
    "name: no UTF-8": ("folder", odd_name(b"caf\xe9.png"), Rejected("it is not an image of a known format")),
    "name: a line break": ("folder", odd_name(b"two\nlines.png"), Rejected("it is not an image of a known format")),
    # pictures
    "picture: zero bytes": ("folder", put("cat/pic_0003.png", b""), Rejected("the file is empty")),
    "picture: a web page in its place": (
        "folder",
        put("cat/pic_0003.png", PAGE),
        Rejected("it is not an image of a known format"),
    ),
    "picture: unreadable permission": (
        "folder",
        forbidden("cat/pic_0003.png"),
        Rejected("the file cannot be read: Permission denied"),
    ),
    "picture: a link to nowhere": ("folder", picture(dangling), Rejected("the file cannot be read: No such file")),
    "picture: JPEG without its end": (
        "folder",
        picture(jpeg_without_its_end),
        Rejected("it cannot be decoded: image file is truncated"),
    ),
    "picture: PNG with a wrong checksum": (
        "folder",
        picture(png_with_bad_checksum),
        Rejected("it is not an image of a known format"),
    ),
    "picture: PNG with wrong data": ("folder", picture(png_with_bad_data), Rejected("it cannot be decoded: ")),
    "picture: huge by its header": (
        "folder",
        picture(claims_to_be_huge),
        Rejected("it has ... more than"),
    ),
    "picture: an animation": ("folder", picture(animation), Rejected("it is a sequence of 3 images, not one")),
    "picture: floating point": ("folder", picture(floats), Rejected("it has 32 bits a pixel")),
    "picture: a single pixel": (
        "folder",
        picture(lambda path: save(path, pixels(1, 1))),
        Rejected("every pixel has the value"),
    ),
    "picture: another format than its name": ("folder", picture(jpeg), Harmless()),
    "picture: CMYK": ("folder", picture(saved_as("CMYK", format="JPEG")), Converted("mode CMYK")),
    "picture: 16 bits": ("folder", picture(sixteen_bits), Converted("16 bits a channel")),
    "picture: a palette": ("folder", picture(saved_as("P")), Converted("mode P")),
    "picture: transparent": ("folder", picture(saved_as("RGBA")), Converted("mode RGBA")),
    "picture: black and white": ("folder", picture(saved_as("1")), Converted("mode 1")),
    "picture: turned by its camera": ("folder", picture(turned), Converted("turned as its EXIF data say")),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_or_counted(kind: str, tmp_path: Path, monkeypatch: Patch) -> None:
    base, damage, expected = DAMAGES[kind]
    raw = tmp_path / "raw"
    BASES[base].write(raw)
    of_machine = len(inspect.signature(damage).parameters) == 2
    if not of_machine:
        damage(raw)  # type: ignore[call-arg]
    before = tree(raw) if raw.exists() else {}
    if of_machine:
        damage(raw, monkeypatch)  # type: ignore[call-arg]
    settings = config(base, tmp_path)
    if isinstance(expected, Refused):
        with pytest.raises(UserError) as refusal:
            prepare(settings)
        assert_says(str(refusal.value), expected.words)
        assert not settings.prepared.exists()
    else:
        assert_card(prepare(settings), expected)
    monkeypatch.undo()
    assert tree(raw) == before


def assert_says(message: str, words: str) -> None:
    assert all(piece in message for piece in words.split(" ... ")), message
    assert "\n" not in message


def assert_card(card: Card, expected: Rejected | Converted | Harmless) -> None:
    reasons = [bad.reason for bad in card.rejected]
    if isinstance(expected, Rejected):
        assert len(reasons) == expected.count, reasons
        for reason in reasons:
            assert_says(reason, expected.words)
    else:
        assert reasons == []
        assert card.converted == ({expected.how: 1} if isinstance(expected, Converted) else {})


def test_every_data_set_is_good_before_its_damage(tmp_path: Path) -> None:
    for name, base in BASES.items():
        base.write(tmp_path / name / "raw")
        card = prepare(config(name, tmp_path / name))
        assert (card.rejected, card.duplicates) == ((), 0), name


@pytest.mark.parametrize("base", ["mnist", "cifar", "cifar_binary", "cifar_archive", "svhn", "imagenet_archive"])
def test_a_wrong_checksum_is_named_with_its_file(base: str, tmp_path: Path) -> None:
    BASES[base].write(tmp_path / "raw")
    with pytest.raises(UserError, match=r"is not the official file: its md5 is \w+, not \w+\. Delete it and get"):
        prepare(config(base, tmp_path, verify=True))
