"""ImageNet (ILSVRC 2012, classification and localisation): photographs of 1,000 kinds of things, of any size.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge" (IJCV, 2015).

    root/train/<wnid>/*.JPEG
    root/val/ILSVRC2012_val_00000001.JPEG ...     or     root/val/<wnid>/*.JPEG
    root/ILSVRC2012_devkit_t12/data/              or     root/ILSVRC2012_devkit_t12.tar.gz

A wnid is WordNet's number of a kind, such as n01440764. The development kit tells the names of the kinds (`meta.mat`)
and, for pictures that lie flat in `val`, their kinds (`ILSVRC2012_validation_ground_truth.txt`). Without it, names may
come from `root/LOC_synset_mapping.txt` or `root/synset_words.txt`, lines of wnid and words.

Classes are numbered by the order of their wnids, as everywhere in the field, not by the devkit's own numbers. Any part
of the 1,000 folders makes a data set as well.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convatlas.core.errors import UserError
from convatlas.data.archives import GET_AGAIN, printable, read_file, read_members, reading
from convatlas.data.fetching import OfficialFile, check, require_root
from convatlas.data.image_files import ImageFiles, pictures_below
from convatlas.data.raw import RawDataset
from convatlas.data.sources.image_folder import NO_IMAGE, ClassFolders, class_folders

__all__ = ["load"]

TITLE = "ImageNet (ILSVRC 2012)"
DEVKIT = "ILSVRC2012_devkit_t12"
META, TRUTH = f"{DEVKIT}/data/meta.mat", f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt")
WNID = re.compile(r"^n\d{8}$")
VALIDATION_PICTURE = re.compile(r"^ILSVRC2012_val_(\d{8})\.JPEG$")
HOW = (
    "Its terms do not let a program fetch it: register at image-net.org, download ILSVRC2012_img_train.tar, "
    "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, unpack the first into train/ and each of its 1,000 "
    "archives into a folder of its name, the second into val/, and leave the third as it is."
)


@dataclass(frozen=True)
class _Devkit:
    """What the development kit tells.

    Attributes:
        where: its folder or archive.
        words: names of the kinds by wnid.
        wnids: by the kit's own numbers.
        truth: the kit's number for each validation picture, the first for picture 1.
    """

    where: Path
    words: dict[str, str]
    wnids: dict[int, str]
    truth: list[int]


def load(root: Path, *, verify: bool = True) -> RawDataset:
    """List the pictures and their classes; none is opened yet. The official validation pictures are the test split.

    Args:
        root: see the head of this file.
        verify: compare the archive of the development kit, where it is one, with the official checksum.

    Raises:
        UserError: a folder or the development kit is missing or damaged, or they contradict each other.
    """
    require_root(root)
    for name in ("train", "val"):
        if not (root / name).is_dir():
            raise UserError(f"{TITLE}: there is no folder {root / name}. {HOW}")
    if any((root / "train").glob("n*.tar")):
        raise UserError(f"{root / 'train'} holds archives; unpack each into a folder of its name, such as n01440764/.")
    devkit = _read_devkit(root, verify)
    found = class_folders(root / "train", root)
    words = devkit.words if devkit else _read_names(root)
    for wnid in found.classes:
        if not WNID.match(wnid) or (words and wnid not in words):
            raise UserError(
                f"{root / 'train' / wnid} is no kind of {TITLE}: name it by a wnid of the development kit, such as "
                "n01440764, or move it away."
            )
    training = len(found.paths)
    notes = ["The test split is the folder val, as usual: the labels of ILSVRC's test set are not public."]
    notes += _add_validation(found, root, devkit)
    official = devkit is not None  # which knows all kinds; others may use the layout for their own
    return RawDataset(
        images=ImageFiles(found.paths),
        classes=_class_names(found.classes, words),
        title=TITLE if official else "Images in the layout of ImageNet",
        origin="O. Russakovsky et al. (2015), ImageNet; photographs from the web" if official else "picture files",
        licence="non-commercial research and education, by ImageNet's terms of access" if official else "not stated",
        made=False,
        labels=np.array(found.labels, dtype=np.int64),
        names=[printable(path.relative_to(root)) for path in found.paths],
        left_out=found.left_out,
        official_split=np.repeat(["train", "test"], [training, len(found.paths) - training]),
        notes=notes,
    )


def _class_names(wnids: list[str], words: dict[str, str]) -> list[str]:
    """Name the classes; where two kinds have the same words (two cranes, for example), the wnid tells them apart."""
    counts = Counter(words.values())
    return [
        wnid if wnid not in words else words[wnid] if counts[words[wnid]] == 1 else f"{words[wnid]} ({wnid})"
        for wnid in wnids
    ]


# ---- validation pictures --------------------------------------------------------------------------------------------


def _add_validation(found: ClassFolders, root: Path, devkit: _Devkit | None) -> list[str]:
    """Add the pictures of `val` and return notes on those that are of no class of the training."""
    pictures, others = pictures_below(root / "val")
    found.left_out += [(printable(path.relative_to(root)), NO_IMAGE) for path in others]
    flat = {path for path in pictures if path.parent == root / "val"}
    if flat and devkit is None:
        raise UserError(
            f"{root / 'val'} holds pictures without class folders, and the development kit that knows their classes is "
            f"missing; put {DEVKIT}.tar.gz into {root}."
        )
    numbers = {wnid: label for label, wnid in enumerate(found.classes)}
    passed_over = 0
    before = len(found.paths)
    for path in pictures:
        wnid = _true_wnid(path, devkit) if devkit and path in flat else path.relative_to(root / "val").parts[0]
        if wnid is None:
            found.left_out.append((printable(path.relative_to(root)), "its name is not that of a validation picture"))
        elif wnid in numbers:
            found.paths.append(path)
            found.labels.append(numbers[wnid])
        else:
            passed_over += 1
    if len(found.paths) == before:
        raise UserError(f"{root / 'val'} holds no picture of the classes in {root / 'train'}; unpack the same ones.")
    if not passed_over:
        return []
    return [f"{passed_over} validation pictures are of kinds without training pictures and not used."]


def _true_wnid(path: Path, devkit: _Devkit) -> str | None:
    """Return the kind of a picture that lies flat in `val`, or None if its name has not the official form."""
    match = VALIDATION_PICTURE.match(path.name)
    if match is None:
        return None
    number = int(match[1])
    if not 1 <= number <= len(devkit.truth):
        raise UserError(
            f"{devkit.where}: {Path(TRUTH).name} has {len(devkit.truth)} lines, and none for {path.name}; it is cut "
            f"off. {GET_AGAIN}"
        )
    kind = devkit.truth[number - 1]
    if kind not in devkit.wnids:
        raise UserError(
            f"{devkit.where}: line {number} of {Path(TRUTH).name} says {kind}, which meta.mat does not know; they are "
            f"damaged. {GET_AGAIN}"
        )
    return devkit.wnids[kind]


# ---- development kit ------------------------------------------------------------------------------------------------


def _read_devkit(root: Path, verify: bool) -> _Devkit | None:
    """Read the kit from its folder or its archive; None where there is neither."""
    archive = root / f"{DEVKIT}.tar.gz"
    where = root / DEVKIT
    if where.is_dir():
        files = {name: read_file(root / name) for name in (META, TRUTH)}
    elif archive.exists():
        if verify:
            from torchvision.datasets.imagenet import ARCHIVE_META

            check(archive, OfficialFile(*ARCHIVE_META["devkit"]))
        where = archive
        files = dict(read_members(archive, [META, TRUTH]))
    else:
        return None
    words, wnids = _read_meta(files[META], where)
    try:
        truth = [int(line) for line in files[TRUTH].decode("ascii").split()]
    except ValueError as error:
        raise UserError(
            f"{where}: {Path(TRUTH).name} is damaged: it must hold one number in each line. {GET_AGAIN}"
        ) from error
    return _Devkit(where, words, wnids, truth)


def _read_meta(content: bytes, where: Path) -> tuple[dict[str, str], dict[int, str]]:
    """Return words by wnid and wnids by the kit's numbers, of the kinds that have no kinds below them."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        kinds = [synset for synset in np.atleast_1d(synsets) if int(synset["num_children"]) == 0]
        words = {str(kind["WNID"]): str(kind["words"]) for kind in kinds}
        return words, {int(kind["ILSVRC2012_ID"]): str(kind["WNID"]) for kind in kinds}
    except Exception as error:  # a damaged file raises nearly every kind
        raise UserError(
            f"{where}: meta.mat is damaged: it cannot be read ({type(error).__name__}). {GET_AGAIN}"
        ) from error


def _read_names(root: Path) -> dict[str, str]:
    """Read the words of each wnid from a text file; empty where there is none."""
    path = next((root / name for name in NAME_FILES if (root / name).exists()), None)
    if path is None:
        return {}
    with reading(path):
        lines = path.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
    pairs = [line.strip().partition(" ") for line in lines if line.strip()]
    for wnid, _, words in pairs:
        if not WNID.match(wnid) or not words:
            raise UserError(f"{path}: the line {printable(wnid)!r} is not a wnid, a space and words; correct the file.")
    return {wnid: words for wnid, _, words in pairs}
