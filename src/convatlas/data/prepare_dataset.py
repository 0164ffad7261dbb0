"""From a source to `data/prepared/<name>/`: read, verify, split, write.

The new folder is written beside the old one under another name and takes its place only when it is whole.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from convatlas.config import DataConfig
from convatlas.data.card import CARD_FILE, Card, Rejected, SplitCounts, fingerprint, plain_source
from convatlas.data.edges import canny_edges, edge_targets
from convatlas.data.prepared import array_file, hash_file
from convatlas.data.sources import RawDataset
from convatlas.data.splits import split_items
from convatlas.data.verification import Findings, count_classes, empty_classes, verify
from convatlas.errors import UserError
from convatlas.models.build import locate

__all__ = ["prepare"]

Items = NDArray[np.int64]


def prepare(config: DataConfig) -> Card:
    """Prepare a data set and return its card.

    Raises:
        UserError: the source, the data or the fractions of the splits are wrong, the source and the configuration
            disagree, or the folder cannot be written; the old folder is then as it was.
    """
    raw = read_source(config)
    findings = verify(raw, config.name)
    _check_source(raw, config)
    used = raw.take(findings.kept)
    parts = split_items(used, config.split, config.name)
    return write(config.prepared, used, parts, describe(config, used, parts, findings, raw.names))


def read_source(config: DataConfig) -> RawDataset:
    """Call the source with `data.root` and its options.

    Raises:
        UserError: there is no such source, or it does not take one of the options.
    """
    load = locate(config.source["_target_"])
    options = {key: value for key, value in config.source.items() if key != "_target_"}
    try:
        inspect.signature(load).bind(config.root, **options)
    except TypeError as error:
        known = [name for name in inspect.signature(load).parameters if name != "root"]
        raise UserError(
            f"data.source: {error}. {config.source['_target_']} takes: {', '.join(known) or 'no options'}."
        ) from error
    raw: RawDataset = load(config.root, **options)
    return raw


def _check_source(raw: RawDataset, config: DataConfig) -> None:
    """Compare the source with the configuration before anything is written."""
    wanted_and_found = {
        "task": (config.task, raw.task),
        "num_classes": (config.num_classes, len(raw.classes)),
        "in_channels": (config.in_channels, raw.images.shape[1]),
    }
    for key, (wanted, found) in wanted_and_found.items():
        if wanted != found:
            raise UserError(
                f"data.{key}={wanted}, but the source of {config.name} has {key}={found}; set data.{key}={found}."
            )


def describe(
    config: DataConfig,
    raw: RawDataset,
    parts: dict[str, Items],
    findings: Findings,
    names: list[str] | None = None,
) -> Card:
    """Fill in the data card, except for the hashes of the files.

    Args:
        config: name, source and fractions.
        raw: the items that are used.
        parts: positions in `raw` of each split's items.
        findings: what the verification found.
        names: of all items of the source, where they have any.

    Raises:
        UserError: a class does not occur in the training split.
    """
    mean, std = channel_statistics(raw.images[parts["train"]])
    missing = empty_classes(raw, parts, config.name)
    return Card(
        name=config.name,
        title=raw.title,
        origin=raw.origin,
        licence=raw.licence,
        made=raw.made,
        notes=tuple(raw.notes),
        task=raw.task,
        classes=tuple(raw.classes),
        image_shape=tuple(raw.images.shape[1:]),
        mean=mean,
        std=std,
        counts={split: _counts(raw.take(items)) for split, items in parts.items()},
        empty_classes={split: tuple(names) for split, names in missing.items()},
        rejected=(
            *(Rejected(item=name, reason=reason) for name, reason in raw.left_out),
            *(Rejected(item=names[item] if names else item, reason=reason) for item, reason in findings.rejected),
        ),
        duplicates=findings.duplicates,
        conflicting_duplicates=findings.conflicting,
        source=plain_source(config),
        split=config.split,
        files={},
        fingerprint="",
    )


def write(folder: Path, raw: RawDataset, parts: dict[str, Items], card: Card) -> Card:
    """Write the arrays and the card, replacing what is there, and return the card with the hashes of the files.

    Args:
        folder: `data.prepared`.
        raw: the items that are used.
        parts: positions in `raw` of each split's items.
        card: without hashes.

    Raises:
        UserError: the folder cannot be written.
    """
    target = folder.absolute()
    new, old = (target.with_name(f".{target.name}.{state}") for state in ("new", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            _clear_leftovers(target, new, old)
            try:
                card = _write_folder(new, raw, parts, card)
                _replace(target, new, old)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}. What was there before is unchanged; "
            "make room or correct data.prepared, then try again."
        ) from error
    return card


def _clear_leftovers(target: Path, new: Path, old: Path) -> None:
    """Tidy up behind a preparation that was killed; one killed between its two renames left the old folder aside."""
    if old.exists() and not target.exists():
        old.rename(target)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _replace(target: Path, new: Path, old: Path) -> None:
    """Put `new` in the place of `target`. A folder cannot be renamed onto another, so the old one steps aside first."""
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_folder(folder: Path, raw: RawDataset, parts: dict[str, Items], card: Card) -> Card:
    folder.mkdir()
    files = {}
    for split, items in parts.items():
        for array, values in _arrays(raw.take(items)):
            path = folder / array_file(split, array)
            np.save(path, np.ascontiguousarray(values), allow_pickle=False)
            files[path.name] = hash_file(path)
    card = card.model_copy(update={"files": dict(sorted(files.items())), "fingerprint": fingerprint(files)})
    (folder / CARD_FILE).write_text(card.to_json(), encoding="utf-8")
    return card


def _arrays(raw: RawDataset) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of one split under the names of `convatlas.data.prepared.ARRAYS`."""
    yield "images", raw.images
    if raw.labels is not None:
        yield "labels", raw.labels
    if raw.boxes is not None and raw.box_labels is not None:
        yield "boxes", np.concatenate([np.zeros((0, 4), dtype=np.float32), *raw.boxes])
        yield "box_labels", np.concatenate([np.zeros(0, dtype=np.int64), *raw.box_labels])
        yield "box_offsets", np.cumsum([0, *(len(boxes) for boxes in raw.boxes)], dtype=np.int64)
    if raw.masks is not None:
        yield "masks", raw.masks
        yield "canny", canny_edges(raw.images)
        yield "edges", edge_targets(raw.masks)
    if raw.spacing is not None:
        yield "spacing", raw.spacing
    if raw.groups is not None:
        yield "groups", raw.groups


def _counts(raw: RawDataset) -> SplitCounts:
    groups = None if raw.groups is None else len(np.unique(raw.groups))
    return SplitCounts(images=len(raw), groups=groups, classes=count_classes(raw))


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, pixels in [0, 1].

    Counted from the 256 possible values: exact sums, and no copy of the images in floating point.

    Args:
        images: `(N, C, H, W)`.
    """
    values = np.arange(256)
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.bincount(images[:, channel].reshape(-1), minlength=256)
        mean = (counts @ values) / counts.sum()
        variance = (counts @ (values - mean) ** 2) / counts.sum()
        means.append(float(mean) / 255)
        deviations.append(float(np.sqrt(variance)) / 255)
    return tuple(means), tuple(deviations)
