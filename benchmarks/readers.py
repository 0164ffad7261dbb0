"""Count real pictures twice: by code of its own, and as `convatlas prepare` reads them in another format.

    python benchmarks/readers.py FOLDER

FOLDER has `cifar10/cifar-10-batches-py`, `bccd/BCCD` and `sunnybrook` as their makers publish them. Parts of them are
written anew in each format that others bring their data in; what is written is counted on the way, without convatlas.
The table of docs/data.md comes from here.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import numpy as np
from hydra import compose
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image, ImageDraw

from convatlas.core.composing import hydra_ready
from convatlas.core.config import DataConfig
from convatlas.core.files import write_text
from convatlas.data.card import Card
from convatlas.data.prepare_dataset import prepare

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data.md"
BEGIN, END = "<!-- written by benchmarks/readers.py -->", "<!-- end -->"

Counts = dict[str, Counter[str]]
"""By split, train or test: of each class the images, boxes or pixels, and under `images` how many there are."""
PARTS = {"train": ("data_batch_1", 500), "test": ("test_batch", 200)}
"""Of CIFAR-10: file, and how many of its images from the first on."""


# ---- CIFAR-10: classes ----------------------------------------------------------------------------------------------


def cifar(folder: Path) -> Iterator[tuple[str, int, str, Image.Image]]:
    """Yield split, number, class and picture of the parts of CIFAR-10 that are taken."""
    batches = folder / "cifar10" / "cifar-10-batches-py"
    names = pickle.loads((batches / "batches.meta").read_bytes())["label_names"]
    for split, (file, count) in PARTS.items():
        batch = pickle.loads((batches / file).read_bytes(), encoding="bytes")
        for number in range(count):
            pixels = batch[b"data"][number].reshape(3, 32, 32).transpose(1, 2, 0)
            yield split, number, names[batch[b"labels"][number]], Image.fromarray(pixels)


def write_table(folder: Path, to: Path) -> tuple[Counts, list[str]]:
    """Write a CSV file beside a folder of pictures."""
    counts = {"train": Counter[str](), "test": Counter[str]()}
    (to / "images").mkdir(parents=True)
    with (to / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "split"])
        for split, number, name, picture in cifar(folder):
            picture.save(to / "images" / f"{split}_{number}.png")
            writer.writerow([f"{split}_{number}.png", name, split])
            counts[split].update([name, "images"])
    return counts, ["data=image_csv", f"data.root={to}", "data.num_classes=10"]


def write_parquet(folder: Path, to: Path) -> tuple[Counts, list[str]]:
    """Write Parquet files with a column of pictures and one of labels, as Hugging Face's library has them."""
    import datasets

    counts = {"train": Counter[str](), "test": Counter[str]()}
    rows: dict[str, list[Any]] = {"train": [], "test": []}
    for split, _, name, picture in cifar(folder):
        file = io.BytesIO()
        picture.save(file, "PNG")
        rows[split].append({"img": {"bytes": file.getvalue(), "path": None}, "label": name})
        counts[split].update([name, "images"])
    names = sorted(set(counts["train"]) - {"images"})
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for split, found in rows.items():
        (to / "data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_list(found, features=features)
        table.to_parquet(to / "data" / f"{split}-00000-of-00001.parquet")
    return counts, ["data=hugging_face", f"data.source.path={to}", f"data.root={to.parent / 'cache'}"]


def write_torchvision(folder: Path, to: Path) -> tuple[Counts, list[str]]:
    """Write the folders of torchvision's Country211: a folder for each split, and in it one for each class."""
    counts = {"train": Counter[str](), "test": Counter[str]()}
    for split, number, name, picture in cifar(folder):
        path = to / "country211" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        counts[split].update([name, "images"])
    for name in counts["train"]:
        if name != "images":
            (to / "country211" / "valid" / name).mkdir(parents=True)  # which torchvision wants not to be empty
            Image.effect_noise((32, 32), 60).convert("RGB").save(to / "country211" / "valid" / name / "0.png")
            counts["train"].update([name, "images"])
    return counts, [
        "data=torchvision",
        "data.source.dataset=Country211",
        "data.source.download=false",
        f"data.root={to}",
    ]


# ---- BCCD: boxes ----------------------------------------------------------------------------------------------------

CELLS = ["RBC", "WBC", "Platelets"]


def write_yolo(folder: Path, to: Path) -> tuple[Counts, list[str]]:
    """Write images, label files and data.yaml as Ultralytics has them; boxes without an area are not counted."""
    counts: Counts = {"train": Counter(), "test": Counter()}
    source = folder / "bccd" / "BCCD"
    for split, listed in (("train", "trainval"), ("test", "test")):
        for kind in ("images", "labels"):
            (to / kind / split).mkdir(parents=True)
        for name in (source / "ImageSets" / "Main" / f"{listed}.txt").read_text().split():
            (to / "images" / split / f"{name}.jpg").symlink_to(source / "JPEGImages" / f"{name}.jpg")
            lines = []
            for cell in ElementTree.parse(source / "Annotations" / f"{name}.xml").iter("object"):
                kind = cell.findtext("name")
                x1, y1, x2, y2 = (int(cell.findtext(f"bndbox/{key}") or 0) for key in ("xmin", "ymin", "xmax", "ymax"))
                wide, high = (x2 - x1 + 1) * (x1 < x2), (y2 - y1 + 1) * (y1 < y2)
                shares = (x1 - 1 + wide / 2) / 640, (y1 - 1 + high / 2) / 480, wide / 640, high / 480
                lines.append(f"{CELLS.index(str(kind))} " + " ".join(f"{share:.6f}" for share in shares))
                counts[split][str(kind)] += wide > 0 < high
            (to / "labels" / split / f"{name}.txt").write_text("\n".join(lines))
            counts[split]["images"] += 1
    (to / "data.yaml").write_text(f"train: images/train\nval: images/test\nnames: {json.dumps(CELLS)}\n")
    return counts, ["data=yolo", f"data.root={to}", "data.num_classes=4", "data.image_size=64"]


# ---- Sunnybrook: masks ----------------------------------------------------------------------------------------------


def hearts(folder: Path) -> Iterator[tuple[str, str, Image.Image, NDArray[np.bool_]]]:
    """Yield split, name, picture and the cavity of slices with an inner outline; the last patient is the test."""
    import pydicom

    root = folder / "sunnybrook"
    patients = [line.split(",") for line in (root / "link.csv").read_text().split()[1:]]
    patients = [pair for pair in patients if (root / "dicoms" / pair[0]).is_dir()]
    for patient, original in patients:
        split = "test" if patient == patients[-1][0] else "train"
        for file in sorted((root / "contourfiles" / original).rglob("*-icontour-manual.txt")):
            number = int(file.name.split("-")[2])
            values = pydicom.dcmread(root / "dicoms" / patient / f"{number}.dcm").pixel_array.astype(np.float64)
            grey = Image.fromarray((255 * (values - values.min()) / np.ptp(values)).astype(np.uint8))
            mask = Image.new("1", grey.size)
            points = [tuple(map(float, line.split())) for line in file.read_text().splitlines()]
            ImageDraw.Draw(mask).polygon(points, fill=1)
            yield split, f"{patient}_{number}", grey, np.asarray(mask)


def write_coco_masks(folder: Path, to: Path) -> tuple[Counts, list[str]]:
    """Write COCO's annotation files, each cavity as run lengths by columns."""
    counts: Counts = {"train": Counter(), "test": Counter()}
    entries: dict[str, dict[str, list[Any]]] = {split: {"images": [], "annotations": []} for split in counts}
    for number, (split, name, picture, cavity) in enumerate(hearts(folder), start=1):
        (to / split).mkdir(parents=True, exist_ok=True)
        picture.save(to / split / f"{name}.png")
        high, wide = cavity.shape
        entries[split]["images"].append({"id": number, "file_name": f"{name}.png", "height": high, "width": wide})
        steps = np.flatnonzero(np.diff(cavity.ravel(order="F").astype(int), prepend=0, append=0))
        runs = np.diff([0, *steps.tolist(), cavity.size]).tolist()
        outline = {"size": [high, wide], "counts": runs if runs[-1] else runs[:-1]}
        entries[split]["annotations"].append(
            {
                "id": number, "image_id": number, "category_id": 1, "segmentation": outline, "iscrowd": 1,
                "area": int(cavity.sum()), "bbox": [0, 0, wide, high],
            }
        )  # fmt: skip
        counts[split].update({"cavity": int(cavity.sum()), "images": 1})
    (to / "annotations").mkdir()
    for split, found in entries.items():
        content = {**found, "categories": [{"id": 1, "name": "cavity"}]}
        (to / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    splits = ["data.source.train=train", "data.source.test=test"]
    return counts, ["data=coco_masks", f"data.root={to}", *splits, "data.num_classes=2", "data.image_size=256"]


def write_coloured_masks(folder: Path, to: Path) -> tuple[Counts, list[str]]:
    """Write pictures and masks of two colours, and a third where the outermost pixels count nowhere."""
    counts: Counts = {"train": Counter(), "test": Counter()}
    for kind in ("images", "masks"):
        (to / kind).mkdir(parents=True)
    for _, name, picture, cavity in hearts(folder):
        picture.save(to / "images" / f"{name}.png")
        coloured = np.where(cavity[..., None], [200, 30, 30], [0, 0, 80]).astype(np.uint8)
        coloured[:, :2] = [255, 255, 255]
        Image.fromarray(coloured).save(to / "masks" / f"{name}.png")
        counts["train"].update({"cavity": int(cavity[:, 2:].sum()), "images": 1})
    colours = "data.source.mask_colours=[[0,0,80],[200,30,30]]"
    options = ["data=image_mask_folder", f"data.root={to}", colours, "data.source.classes=[background,cavity]"]
    return counts, [*options, "data.source.ignore=[255,255,255]", "data.image_size=256"]


# ---- both counts ----------------------------------------------------------------------------------------------------

FORMATS: Mapping[str, tuple[str, Callable[[Path, Path], tuple[Counts, list[str]]]]] = {
    "image_csv": ("CIFAR-10, PNG files and a CSV", write_table),
    "hugging_face": ("CIFAR-10, Parquet", write_parquet),
    "torchvision": ("CIFAR-10, the folders of Country211", write_torchvision),
    "yolo": ("BCCD, as Ultralytics writes it", write_yolo),
    "coco_masks": ("Sunnybrook, run lengths", write_coco_masks),
    "image_mask_folder": ("Sunnybrook, masks by colour, two columns ignored", write_coloured_masks),
}
"""By the reader: which set in which form, and what writes and counts it."""


def both(name: str, folder: Path, work: Path) -> tuple[Counts, Counts, int]:
    """Write a format below an empty folder and prepare it.

    Returns:
        What was counted when it was written, what the card has, and how many things it names as left out.
    """
    counted, options = FORMATS[name][1](folder, work / "raw")
    with hydra_ready():
        sizes = [] if any("image_size" in option for option in options) else ["data.image_size=32"]
        split = [] if name == "image_mask_folder" else ["data.split.test=0"]
        given = [*options, *sizes, *split, f"data.name={name}_real", f"data.prepared={work / 'prepared'}"]
        plain = OmegaConf.to_container(compose("prepare", given).data, resolve=True)
    card = prepare(DataConfig.model_validate(plain))
    return counted, of_card(card, together=name == "image_mask_folder"), len(card.rejected)


def of_card(card: Card, *, together: bool) -> Counts:
    """Return the counts of a card: training and validation as one, and with `together` the test as well."""
    counts: Counts = {"train": Counter(), "test": Counter()}
    for split, found in card.counts.items():
        of = counts["test" if split == "test" and not together else "train"]
        of.update({key: value for key, value in found.classes.items() if key != "background"})
        of["images"] += found.images
    return counts


def main() -> None:
    """Count every format twice, and write the table."""
    lines = ["| `data=` | what | images, train + test | of which | `prepare` | left out |", "|---" * 6 + "|"]
    for name, (what, _) in FORMATS.items():
        with TemporaryDirectory() as work:
            counted, found, left_out = both(name, Path(sys.argv[1]).resolve(), Path(work))
        images = " + ".join(f"{counted[split]['images']:,}" for split in ("train", "test"))
        same = "the same" if counted == found else f"**differs**: {in_words(found)}"
        lines.append(f"| `{name}` | {what} | {images} | {in_words(counted)} | {same} | {left_out} |")
        print(lines[-1], flush=True)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    write_text(PAGE, f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}")


def in_words(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Write the classes of both splits, three at most by name."""
    classes: Sequence[str] = sorted({name for split in counts.values() for name in split} - {"images"})
    texts = [f"{name} {counts['train'].get(name, 0):,} + {counts['test'].get(name, 0):,}" for name in classes]
    return ", ".join(texts if len(texts) <= 3 else [*texts[:2], f"and {len(texts) - 2} classes more"])


if __name__ == "__main__":
    main()
