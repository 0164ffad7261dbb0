"""The data card `dataset.json`: what a prepared data set is, whence it comes, how it was divided, what was left out.

It holds nothing that depends on time or machine: preparing the same data twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from convatlas.core.composing import conf_dir
from convatlas.core.config import DataConfig, SplitConfig
from convatlas.core.errors import UserError
from convatlas.core.files import check_regular
from convatlas.data.squares import Fit

__all__ = [
    "CARD_FILE",
    "Card",
    "ImageSizes",
    "NearPair",
    "Rejected",
    "SplitCounts",
    "fingerprint",
    "normalisation",
    "plain_source",
    "remedy",
]

CARD_FILE = "dataset.json"
NO_MATTER = {"download", "verify", "instructions"}
"""Options of sources that decide how the files come, and not what is in them."""
NO_SPREAD = 1e-6
"""Standard deviation, of pixels in [0, 1], up to which all are equal but for rounding."""


class Entry(BaseModel):
    """A part of the card: no unknown keys, nothing changed after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitCounts(Entry):
    """How much is in one split.

    Attributes:
        images: images.
        groups: groups of images that belong together, where the source has any.
        classes: by class name: images in classification, boxes in detection, pixels in segmentation.
    """

    images: int
    groups: int | None
    classes: dict[str, int]


class Rejected(Entry):
    """An item of the source that is left out: its position, or its name where the source has names."""

    item: int | str
    reason: str


class NearPair(Entry):
    """Two images in different splits that look the same; see `convatlas.data.duplicates`.

    Attributes:
        item, other: positions in the source, or names where the source has names.
        split, other_split: where they are.
        position, other_position: in their splits.
        similarity: correlation of their thumbnails.
    """

    item: int | str
    split: str
    position: int
    other: int | str
    other_split: str
    other_position: int
    similarity: float


class ImageSizes(Entry):
    """Height and width, in pixels, of the images with the fewest, the median and the most pixels.

    `shorter_sides` says how many images have a shorter side from the first number to the one before the second.
    """

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    shorter_sides: tuple[tuple[int, int, int], ...] = ()


class Card(Entry):
    """A prepared data set.

    Attributes:
        format: version of this file format.
        name: as in `conf/data`.
        title, origin, licence, made, notes: see `convatlas.data.raw.RawDataset`.
        task: what the annotations are for.
        classes: names by class number; in detection and segmentation number 0 is the background.
        image_shape: `(C, H, W)` of the stored images; in shards H and W differ and are None.
        storage: "arrays" or "shards", see `convatlas.data.prepared`.
        stored_side: see `convatlas.core.config.DataConfig`.
        fitted: how images of many sizes became squares, see `convatlas.data.squares.Fit`; shards are fitted when they
            are read. None where the images came in one size.
        percentiles: whether images of 16 bits were stretched between percentiles; see `convatlas.data.decoding.decode`.
        original_sizes: of images that came in files.
        converted: of images that came in files, how many are not stored as they were, by what was done.
        mean, std: of each channel over the training split, pixels in [0, 1]. In shards every image counts the same.
        counts: by split.
        empty_classes: by split, the classes that do not occur in it; splits that have all are not listed.
        rejected: what was left out.
        duplicates: images that are equal to an earlier one in every byte; they lie in the same split.
        conflicting_duplicates: pairs of positions in the source of equal images with different annotations.
        near_duplicates: images, exact copies aside, that have a near copy anywhere in the data set.
        near_across: near copies in different splits, for each image of the later split the one most like it. They are
            left where they are: a likeness is no proof.
        source: `_target_` and options that the images came from.
        split: fractions and seed.
        files: sha256 of every file of arrays or of encoded images.
        fingerprint: sha256 over the files' names and hashes: equal fingerprints mean equal data.
    """

    format: Literal[3] = 3
    name: str
    title: str
    origin: str
    licence: str
    made: bool
    notes: tuple[str, ...]
    task: Literal["classification", "detection", "segmentation"]
    classes: tuple[str, ...]
    image_shape: tuple[int, int | None, int | None]
    storage: Literal["arrays", "shards"]
    stored_side: int | None
    fitted: Fit | None
    percentiles: bool
    original_sizes: ImageSizes | None
    converted: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: dict[str, SplitCounts]
    empty_classes: dict[str, tuple[str, ...]]
    rejected: tuple[Rejected, ...]
    duplicates: int
    conflicting_duplicates: tuple[tuple[int, int], ...]
    near_duplicates: int
    near_across: tuple[NearPair, ...]
    source: dict[str, Any]
    split: SplitConfig
    files: dict[str, str]
    fingerprint: str

    @model_validator(mode="after")
    def _has_each_channel(self) -> Card:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.image_shape[0] or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} is not one number for each of {self.image_shape[0]} channels")
        return self

    @classmethod
    def read(cls, folder: Path) -> Card:
        """Read the card of a prepared data set.

        Raises:
            UserError: the folder or the card is missing, or the card cannot be understood.
        """
        return cls.read_file(folder / CARD_FILE, remedy(folder.name))

    @classmethod
    def read_file(cls, path: Path, cure: str = "Train the run again.") -> Card:
        """Read the file of a card; raises as `read`, and `cure` ends the message."""
        check_regular(path, cure[:1].lower() + cure[1:].removesuffix("."))
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing. {cure}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            reason = first["msg"].removeprefix("Value error, ")
            raise UserError(f"{path} is not a data card of this version ({where}: {reason}). {cure}") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}. {cure}") from error

    def to_json(self) -> str:
        """Write the card as JSON text, always the same for the same card."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def check(self, config: DataConfig) -> None:
        """Compare with a run's configuration.

        Raises:
            UserError: a key of `conf/data` says something else than what was prepared.
        """
        wanted_and_found: dict[str, tuple[Any, Any]] = {
            "name": (config.name, self.name),
            "task": (config.task, self.task),
            "num_classes": (config.num_classes, len(self.classes)),
            "in_channels": (config.in_channels - self.has_canny(config), self.image_shape[0]),
            **{f"split.{key}": (value, getattr(self.split, key)) for key, value in config.split},
            "storage": (config.storage, self.storage),
            "stored_side": (config.stored_side, self.stored_side),
        }
        wanted, found = plain_source(config), self.source
        keys = sorted({*wanted, *found} - NO_MATTER)
        wanted_and_found |= {f"source.{key}": (wanted.get(key), found.get(key)) for key in keys}
        for key, (value, prepared) in wanted_and_found.items():
            if value != prepared:
                raise UserError(
                    f"data.{key}={value}, but the data prepared in {config.prepared} have {key}={prepared}. "
                    f"Set data.{key} to that, or prepare anew: {remedy(config.name)}"
                )

    def has_canny(self, config: DataConfig) -> bool:
        """Say whether the nets of a configuration get the images' Canny edges as one channel more than the images have.

        Every prepared set with masks has them; `data.in_channels` asks for them.
        """
        return "train_canny.npy" in self.files and config.in_channels == self.image_shape[0] + 1

    def normalisation(self, config: DataConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return what is subtracted from each channel of a net's images in [0, 1], and what it is then divided by.

        Canny's edges stay 0 and 1, as does everything of detectors, which normalise images themselves.
        """
        if config.task == "detection":
            return (0.0,) * config.in_channels, (1.0,) * config.in_channels
        mean, std = normalisation(self.mean, self.std)
        return (*mean, 0.0)[: config.in_channels], (*std, 1.0)[: config.in_channels]

    def for_programs(self, config: DataConfig, test_crop: float) -> dict[str, Any]:
        """Return what a program has to know to give a net images of its own, as plain values.

        Args:
            config: of the net's run.
            test_crop: `recipe.test_crop` of the run.

        Returns:
            `task`, `classes`; `input_size` (channels, height, width) and `channels`, what they are; `range` of the
            pixels; `mean` and `std`, which a served or exported net itself subtracts and divides by (0 and 1 of
            detectors, see `normalisation`); `fitted` and `test_crop`, how images of other sizes were brought to that
            size, see `convatlas.data.squares.Fit`.
        """
        mean, std = self.normalisation(config)
        colours = ["grey"] if self.image_shape[0] == 1 else ["red", "green", "blue"]
        return {
            "task": config.task,
            "classes": list(self.classes),
            "input_size": [config.in_channels, config.image_size, config.image_size],
            "channels": [*colours, *(["canny edges"] if self.has_canny(config) else [])],
            "range": [0, 1],
            "mean": list(mean),
            "std": list(std),
            "fitted": self.fitted or "stretch",
            "test_crop": test_crop,
        }

    def for_fitting(self) -> dict[str, Any]:
        """Return what `convatlas.data.squares.fit_image` needs of a card, as plain values."""
        names = ("name", "image_shape", "storage", "stored_side", "fitted", "percentiles")
        found = {name: getattr(self, name) for name in names}
        return found | {"source": {"pixel_mm": self.source.get("pixel_mm")}}


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what is subtracted from the pixels of each channel, and what they are then divided by.

    A channel whose pixels are all equal has no spread to divide by; it becomes zero.
    """
    return tuple(mean), tuple(value if value > NO_SPREAD else 1.0 for value in std)


def remedy(name: str) -> str:
    """Say how a data set is prepared; the last sentence of a message."""
    if (conf_dir() / "data" / f"{name}.yaml").is_file():
        return f"Run `python -m convatlas.prepare data={name}`."
    return f"Run `python -m convatlas.prepare` with the options it was prepared with, data.name={name} among them."


def plain_source(config: DataConfig) -> dict[str, Any]:
    """Return `data.source` as it reads back from JSON, for the card and for comparison with it."""
    plain: dict[str, Any] = json.loads(json.dumps(config.source, default=str))
    return plain


def fingerprint(files: Mapping[str, str]) -> str:
    """Return one sha256 over file names and their sha256."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
