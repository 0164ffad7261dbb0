"""Small raw data sets, each written in the format of its makers, and what tests do with raw folders."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

KINDS = ["n01440764", "n02012849", "n03126707"]  # a fish and two that are both called crane
KIND_NUMBERS = {"n01440764": 7, "n02012849": 3, "n03126707": 12}
DEVKIT = "ILSVRC2012_devkit_t12"


def pixels(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tree(root: Path) -> dict[str, str]:
    """Say what lies below a folder: kind, mode and sha256 of each entry, by its path."""
    state = {}
    for path in sorted(root.rglob("*")):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        state[os.fsencode(path.relative_to(root)).hex()] = f"{oct(path.lstat().st_mode)} {content}"
    return state


def save(path: Path, image: NDArray[Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def write_tar(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def tar_of_folder(path: Path, folder: Path) -> Path:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return write_tar(
        path, [(tarfile.TarInfo(str(file.relative_to(folder.parent))), file.read_bytes()) for file in files]
    )


# ---- MNIST ----------------------------------------------------------------------------------------------------------


def idx(values: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_mnist(root: Path, count: int = 40, tests: int = 20, *, gzipped: bool = True) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for part, size, seed in (("train", count, 0), ("t10k", tests, 1)):
        labels = (np.arange(size) % 10).astype(np.uint8)
        for name, values in (("images-idx3", pixels(size, 28, 28, seed=seed)), ("labels-idx1", labels)):
            content = idx(values)
            file = root / f"{part}-{name}-ubyte{'.gz' if gzipped else ''}"
            file.write_bytes(gzip.compress(content) if gzipped else content)
    return root


# ---- CIFAR ----------------------------------------------------------------------------------------------------------


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes byte strings as Python 2 wrote its texts, which is what the official files hold."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, text: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)

    dispatch[bytes] = save_text


def python2_pickle(value: Any) -> bytes:
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar_batch(count: int, seed: int, labels: dict[bytes, list[int]]) -> dict[bytes, Any]:
    names = [b"picture_s_%06d.png" % item for item in range(count)]
    return {b"data": pixels(count, 3072, seed=seed), b"filenames": names, b"batch_label": b"a batch", **labels}


def cifar10_batches(count: int = 10) -> dict[str, dict[bytes, Any]]:
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    labels = {b"labels": [item % 10 for item in range(count)]}
    return {name: cifar_batch(count, seed, labels) for seed, name in enumerate(names)}


CIFAR10_NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]


def write_cifar10(folder: Path, count: int = 10) -> Path:
    folder.mkdir(parents=True)
    for name, batch in cifar10_batches(count).items():
        (folder / name).write_bytes(python2_pickle(batch))
    meta = {b"label_names": CIFAR10_NAMES, b"num_cases_per_batch": count, b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    return folder


def write_cifar10_binary(folder: Path, count: int = 10) -> Path:
    folder.mkdir(parents=True)
    for name, batch in cifar10_batches(count).items():
        labels = np.array(batch[b"labels"], dtype=np.uint8)[:, None]
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels, batch[b"data"]], axis=1).tobytes())
    (folder / "batches.meta.txt").write_bytes(b"\n".join(CIFAR10_NAMES) + b"\n\n")
    return folder


def cifar100_batches(count: int = 100) -> dict[str, dict[bytes, Any]]:
    fine = [item % 100 for item in range(count)]
    labels = {b"fine_labels": fine, b"coarse_labels": [label // 5 for label in fine]}
    return {name: cifar_batch(count, seed, labels) for seed, name in enumerate(["train", "test"])}


def cifar100_names() -> dict[bytes, list[bytes]]:
    return {
        b"fine_label_names": [b"fine %d" % n for n in range(100)],
        b"coarse_label_names": [b"c%d" % n for n in range(20)],
    }


def write_cifar100(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in {**cifar100_batches(), "meta": cifar100_names()}.items():
        (folder / name).write_bytes(python2_pickle(content))
    return folder


def write_cifar100_binary(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, batch in cifar100_batches().items():
        labels = np.array([batch[b"coarse_labels"], batch[b"fine_labels"]], dtype=np.uint8).T
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels, batch[b"data"]], axis=1).tobytes())
    for kind, names in cifar100_names().items():
        (folder / f"{kind.decode()}.txt").write_bytes(b"\n".join(names) + b"\n")
    return folder


# ---- SVHN -----------------------------------------------------------------------------------------------------------


def write_svhn(root: Path, parts: Iterable[str] = ("train", "test"), count: int = 20) -> Path:
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    for seed, part in enumerate(parts):
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        images = pixels(32, 32, 3, count, seed=seed)
        savemat(root / f"{part}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return root


# ---- ImageNet -------------------------------------------------------------------------------------------------------


def write_meta(path: Path) -> Path:
    """Write `meta.mat` with the three kinds, and one above them that is no class."""
    from scipy.io import savemat

    words = {"n01440764": "tench, Tinca tinca", "n02012849": "crane", "n03126707": "crane", "n00001740": "entity"}
    numbers = {**KIND_NUMBERS, "n00001740": 1001}
    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    synsets = np.zeros((len(words), 1), dtype=[(name, object) for name in fields])
    for row, (wnid, text) in enumerate(words.items()):
        children = 3 if wnid == "n00001740" else 0
        below = np.array(list(KIND_NUMBERS.values()), dtype=float) if children else np.zeros(0)
        synsets[row, 0] = (float(numbers[wnid]), wnid, text, "a gloss", float(children), below, 0.0, 4.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"synsets": synsets})
    return path


def write_imagenet(root: Path, *, flat: bool = True, devkit: str = "folder") -> Path:
    """Write three kinds of four training pictures, six validation pictures, and the development kit."""
    for label, wnid in enumerate(KINDS):
        for item in range(4):
            path = root / "train" / wnid / f"{wnid}_{item}.JPEG"
            save(path, pixels(40 + item, 60, 3, seed=10 * label + item), format="JPEG")
    truth = [KINDS[item % 3] for item in range(6)]
    for item, wnid in enumerate(truth):
        folder = root / "val" if flat else root / "val" / wnid
        path = folder / f"ILSVRC2012_val_{item + 1:08d}.JPEG"
        save(path, pixels(50, 40, 3, seed=100 + item), format="JPEG")
    if devkit != "none":
        data = root / DEVKIT / "data"
        write_meta(data / "meta.mat")
        lines = "".join(f"{KIND_NUMBERS[wnid]}\n" for wnid in truth)
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    if devkit == "archive":
        import shutil

        tar_of_folder(root / f"{DEVKIT}.tar.gz", root / DEVKIT)
        shutil.rmtree(root / DEVKIT)
    return root


# ---- folders --------------------------------------------------------------------------------------------------------


def write_class_folders(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    for label, (name, count) in enumerate(counts.items()):
        for item in range(count):
            save(
                folder / name / f"pic_{item:04d}.png",
                pixels(12 + item % 3, 16, 3, seed=1000 * seed + 100 * label + item),
            )
    return folder


def write_simpsons(root: Path) -> Path:
    counts = {"bart_simpson": 12, "homer_simpson": 12, "sideshow_bob": 12}
    write_class_folders(root / "simpsons_dataset", counts)
    for label, name in enumerate(counts):
        for item in range(3):
            path = root / "kaggle_simpson_testset" / "kaggle_simpson_testset" / f"{name}_{item}.jpg"
            save(path, pixels(20, 20, 3, seed=5000 + 10 * label + item))
    return root
