"""From a source to `data/prepared/<name>/`: read, verify, split, describe, write.

Of images in files, what the verification found is saved while it runs; a preparation that was killed goes on from it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convatlas.core.config import DataConfig
from convatlas.core.errors import UserError
from convatlas.core.targets import checked_arguments, locate
from convatlas.data.card import CARD_FILE, Card, ImageSizes, NearPair, Rejected, SplitCounts, plain_source
from convatlas.data.decoding import MODES
from convatlas.data.duplicates import near_copies
from convatlas.data.examination import forget, in_parallel
from convatlas.data.image_files import ImageFiles
from convatlas.data.raw import RawDataset
from convatlas.data.splits import SPLITS, split_items
from convatlas.data.spool import Items, Rows, Spool, chunks, spooled_beside
from convatlas.data.squares import Fit, fit, size_in_shards
from convatlas.data.verification import Findings, alike_names, count_classes, empty_classes, verify
from convatlas.data.writing import Encoder, beside, decode_again, write

__all__ = ["prepare", "prepare_raw"]


def prepare(config: DataConfig) -> Card:
    """Prepare a data set and return its card.

    Raises:
        UserError: the source, the data or the fractions of the splits are wrong, the source and the configuration
            disagree, or the folder cannot be written; the old folder is then as it was.
    """
    _check_prepared(config)
    with spooled_beside(config.prepared):
        return prepare_raw(config, read_source(config))


SIZE_BINS = 16
"""Bars of the card's histogram of image sizes."""

_OWN = re.compile(rf"{re.escape(CARD_FILE)}|names\.json|identity\.json|({'|'.join(SPLITS)})_\w+\.(npy|arrow)")
"""The files of a prepared data set."""


def _check_prepared(config: DataConfig) -> None:
    """Refuse to write where something else lies: the folder of a prepared set is replaced as a whole."""
    target, root = config.prepared.resolve(), config.root.resolve()
    if target == root or target in root.parents or root in target.parents:
        raise UserError(
            f"data.prepared={config.prepared} and data.root={config.root} lie within each other, and the raw files "
            "must stay as they are; set data.prepared to a folder beside them."
        )
    if target.exists() and not target.is_dir():
        raise UserError(f"data.prepared={config.prepared} is a file; set another folder.")
    if target in (Path.cwd(), *Path.cwd().parents):
        raise UserError(f"data.prepared={config.prepared} holds the folder that you are in; set another.")
    if target.is_dir() and any(target.iterdir()) and not (target / CARD_FILE).exists():
        raise UserError(
            f"data.prepared={config.prepared} holds files, but no {CARD_FILE}: it is no prepared data set and would be "
            "replaced; set another folder, or empty this one."
        )
    for path in sorted(target.rglob("*")) if target.is_dir() else ():
        if path.is_dir() or not _OWN.fullmatch(path.relative_to(target).as_posix()):
            raise UserError(
                f"data.prepared={config.prepared} holds {path.name}, which no preparation wrote and would be deleted; "
                "set another folder, or move it."
            )


def prepare_raw(config: DataConfig, raw: RawDataset) -> Card:
    """Prepare what a source has returned; raises as `prepare` does."""
    _check_storage(raw, config)
    saved = beside(config.prepared, "found")
    findings = verify(raw, config.name, config.in_channels, saved)
    _check_source(raw, config)
    used = raw.take(findings.kept)
    parts = split_items(used, config.split, config.name, findings.copies)
    if config.split.train_per_class is not None:
        unused = len(used) - sum(len(items) for items in parts.values())
        few = f"{config.split.train_per_class} training images of each class were drawn; {unused} are not used."
        used = replace(used, notes=[*used.notes, few])
    if alike := alike_names(used.classes):
        print(f"{config.name}: {alike}", file=sys.stderr)
        used = replace(used, notes=[*used.notes, alike])
    missing = empty_classes(used, parts, config.name)
    stored, encoder = _as_stored(used, config, findings)
    card = describe(config, stored, parts, findings, missing)
    card = write(config.prepared, stored, parts, card, encoder)
    forget(saved)
    return card


def read_source(config: DataConfig) -> RawDataset:
    """Call the source with `data.root` and its options.

    Raises:
        UserError: there is no such source, or an option does not exist or has a wrong type.
    """
    load = locate(config.source["_target_"], "data.source._target_")
    options = {key: value for key, value in config.source.items() if key != "_target_"}
    root = next(iter(inspect.signature(load).parameters))  # whatever a source of the user's calls it
    options = checked_arguments(load, {**options, root: config.root}, "data.source")
    raw: RawDataset = load(options.pop(root), **options)
    return raw


def _check_storage(raw: RawDataset, config: DataConfig) -> None:
    """Compare `data.storage` with what the source returns."""
    if not isinstance(raw.images, ImageFiles):
        if config.storage != "arrays":
            raise UserError(
                f"data.storage={config.storage}: {config.name} has images of one size in one array; "
                "set data.storage=arrays."
            )
        if config.stored_side is not None:
            raise UserError(
                f"data.stored_side={config.stored_side}: the images of {config.name} do not come as files and keep "
                "their size; set data.stored_side=null."
            )
        return
    if config.in_channels not in MODES:
        raise UserError(f"data.in_channels={config.in_channels}: picture files have 1 or 3 channels; set one of them.")
    if config.storage == "arrays" and config.stored_side is None:
        raise UserError(
            f"data.stored_side=null: the images of {config.name} have many sizes; set the side of the squares that "
            f"are stored, for example data.stored_side={config.image_size}, or set data.storage=shards."
        )


def _check_source(raw: RawDataset, config: DataConfig) -> None:
    """Compare the source with the configuration before anything is written."""
    channels = config.in_channels if isinstance(raw.images, ImageFiles) else raw.images.shape[1]
    wanted_and_found = {
        "task": (config.task, raw.task),
        "num_classes": (config.num_classes, len(raw.classes)),
        "in_channels": (config.in_channels, channels),
    }
    for key, (wanted, found) in wanted_and_found.items():
        if wanted != found:
            raise UserError(
                f"data.{key}={wanted}, but the source of {config.name} has {key}={found}; set data.{key}={found}."
            )


# ---- images in files, on their way to arrays or shards --------------------------------------------------------------


def _as_stored(raw: RawDataset, config: DataConfig, findings: Findings) -> tuple[RawDataset, Encoder | None]:
    """Bring images in files, and their boxes, to the size in which they are stored; arrays stay as they are.

    Returns:
        the data set, and for shards what encodes their images.
    """
    if not isinstance(raw.images, ImageFiles):
        return raw, None
    seen = findings.examination
    sizes = seen.sizes[findings.kept]
    side = config.stored_side
    if config.storage == "shards":
        stored = np.array([size_in_shards(height, width, side) for height, width in sizes.tolist()])
        encoder = Encoder(raw.images, config.in_channels, side, sizes, seen.plain[findings.kept])
        return _with_boxes_for(raw, sizes, stored), encoder
    assert side is not None, "arrays of files have a side; `_check_storage` sees to it"
    images, channels, how = raw.images, config.in_channels, fitting(raw)
    everything = np.arange(len(images), dtype=np.int64)
    squares = Spool()

    def square(item: int) -> NDArray[np.uint8]:
        return fit(decode_again(images, item, channels).pixels, side, how)

    for pixels in in_parallel(square, everything, "resizing"):
        squares.append(pixels)
    return replace(_with_boxes_for(raw, sizes, np.full_like(sizes, side)), images=squares.array()), None


def fitting(raw: RawDataset) -> Fit:
    """Say how images become squares: boxes must not be cut, anything else keeps its proportions."""
    return "stretch" if raw.boxes is not None else "centre"


def _with_boxes_for(raw: RawDataset, before: Items, after: Items) -> RawDataset:
    """Scale the boxes as images of sizes `before`, `(N, 2)`, are brought to sizes `after`."""
    if raw.boxes is None:
        return raw
    ratios = np.tile((after / before)[:, ::-1], 2).astype(np.float32)
    return replace(raw, boxes=[boxes * ratio for boxes, ratio in zip(raw.boxes, ratios, strict=True)])


# ---- the card -------------------------------------------------------------------------------------------------------


def describe(
    config: DataConfig,
    raw: RawDataset,
    parts: dict[str, Items],
    findings: Findings,
    missing: dict[str, list[str]],
) -> Card:
    """Fill in the data card, except for the hashes of the files.

    Args:
        config: name, source and fractions.
        raw: the items that are used, as they are stored.
        parts: positions in `raw` of each split's items.
        findings: what the verification found.
        missing: by split, the classes that do not occur in it.
    """
    mean, std = _statistics(raw, parts["train"], findings)
    from_files = isinstance(raw.images, ImageFiles) or config.stored_side is not None
    return Card(
        name=config.name,
        title=raw.title,
        origin=raw.origin,
        licence=raw.licence,
        made=raw.made,
        notes=tuple(raw.notes),
        task=raw.task,
        classes=tuple(raw.classes),
        image_shape=(config.in_channels, None, None) if isinstance(raw.images, ImageFiles) else raw.images.shape[1:],
        storage=config.storage,
        stored_side=config.stored_side,
        fitted=fitting(raw) if from_files else raw.fitted,
        percentiles=raw.percentiles,
        original_sizes=_sizes(findings) if from_files else None,
        converted=_conversions(raw, findings, config),
        mean=mean,
        std=std,
        counts={split: _counts(raw.take(items)) for split, items in parts.items()},
        empty_classes={split: tuple(classes) for split, classes in missing.items()},
        rejected=(
            *(Rejected(item=name, reason=reason) for name, reason in raw.left_out),
            *(Rejected(item=findings.called(item), reason=reason) for item, reason in findings.rejected),
        ),
        duplicates=findings.duplicates,
        conflicting_duplicates=findings.conflicting,
        near_duplicates=_near_duplicates(findings),
        near_across=tuple(_near_across(parts, findings)),
        source=plain_source(config),
        split=config.split,
        files={},
        fingerprint="",
    )


def _counts(raw: RawDataset) -> SplitCounts:
    groups = None if raw.groups is None else len(np.unique(raw.groups))
    return SplitCounts(images=len(raw), groups=groups, classes=count_classes(raw))


def _statistics(raw: RawDataset, train: Items, findings: Findings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over the training split, pixels in [0, 1]."""
    if not isinstance(raw.images, ImageFiles):
        return channel_statistics(Rows(raw.images, train))
    mean, mean_square = findings.examination.moments[findings.kept][train].mean(axis=0)
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(mean_square - mean**2, 0)).tolist())


def channel_statistics(images: NDArray[np.uint8] | Rows) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, pixels in [0, 1].

    Counted from the 256 possible values: exact sums, and no copy of the images in floating point.

    Args:
        images: `(N, C, H, W)`.
    """
    values = np.arange(256)
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for some in chunks(images):
        counts += [np.bincount(some[:, channel].reshape(-1), minlength=256) for channel in range(len(counts))]
    means = counts @ values / counts.sum(axis=1)
    deviations = [c @ (values - mean) ** 2 / c.sum() for c, mean in zip(counts, means, strict=True)]
    return tuple((means / 255).tolist()), tuple((np.sqrt(deviations) / 255).tolist())


def _sizes(findings: Findings) -> ImageSizes:
    sizes = findings.examination.sizes[findings.kept]
    order = np.argsort(sizes.prod(axis=1), kind="stable")
    smallest, median, largest = (tuple(sizes[order[at]].tolist()) for at in (0, len(order) // 2, -1))
    shorter = sizes.min(axis=1)
    edges = np.unique(np.linspace(shorter.min(), shorter.max() + 1, SIZE_BINS + 1).astype(np.int64))
    counts, _ = np.histogram(shorter, edges)
    bins = tuple(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True))
    return ImageSizes(smallest=smallest, median=median, largest=largest, shorter_sides=bins)


def _conversions(raw: RawDataset, findings: Findings, config: DataConfig) -> dict[str, int]:
    """Count what was done to images that came in files."""
    seen = findings.examination
    counts = raw.converted + Counter(
        change for item in findings.kept.tolist() for change in seen.changed.get(item, "").split(", ")
    )
    counts.pop("", None)
    if config.storage == "shards" and config.stored_side is not None:
        smaller = int((seen.sizes[findings.kept].min(axis=1) > config.stored_side).sum())
        counts.update({f"brought to a shorter side of {config.stored_side} pixels": smaller} if smaller else {})
    return dict(sorted(counts.items()))


def _near_duplicates(findings: Findings) -> int:
    """Count the images that have a near copy, exact copies aside."""
    copies = findings.copies
    different = np.flatnonzero(copies == np.arange(len(copies)))
    return len(near_copies(findings.examination.thumbnails[findings.kept], different, different))


def _near_across(parts: dict[str, Items], findings: Findings) -> Iterator[NearPair]:
    """Yield near copies in different splits; exact copies are in one and the same."""
    thumbs = findings.examination.thumbnails[findings.kept]
    for earlier, later in combinations(SPLITS, 2):
        found = near_copies(thumbs, parts[later], parts[earlier])
        for item, other, similarity in zip(found.items, found.others, found.similarity, strict=True):
            yield NearPair(
                item=findings.called(int(findings.kept[item])),
                split=later,
                position=int(np.searchsorted(parts[later], item)),
                other=findings.called(int(findings.kept[other])),
                other_split=earlier,
                other_position=int(np.searchsorted(parts[earlier], other)),
                similarity=round(float(similarity), 3),
            )
