"""The three splits: train, validation, test.

The test split is the official one where the source has one. Otherwise a fraction `split.test` of everything is set
aside first. Validation is always a fraction `split.validation` of what is left. Classification is stratified by label;
boxes and masks by whether an image has any, where a split would otherwise have none.
Images that belong together (one group, or equal to the byte) are never torn apart. The same data and seed give the same
splits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convatlas.core.config import SplitConfig
from convatlas.core.errors import UserError
from convatlas.data.duplicates import first_copies
from convatlas.data.raw import IGNORED, RawDataset
from convatlas.data.spool import Items, chunks

__all__ = ["SPLITS", "split_items", "units_of"]

SPLITS = ("train", "validation", "test")


def split_items(raw: RawDataset, config: SplitConfig, name: str, copies: Items | None = None) -> dict[str, Items]:
    """Divide a data set.

    Args:
        raw: the verified data set.
        config: fractions and seed.
        name: of the data set, for messages.
        copies: for each image the first that is equal to it, see `units_of`.

    Returns:
        for each of `SPLITS` the positions of its items, ascending.

    Raises:
        UserError: a fraction contradicts the source, a split would be empty, the official splits share a group, or a
            class has fewer than `train_per_class` images.
    """
    _check_fractions(raw, config, name)
    units = units_of(raw, copies)
    parts = _divided(raw, config, name, units, np.zeros(len(raw), dtype=np.int64) if raw.labels is None else raw.labels)
    if raw.labels is None:
        filled = has_objects(raw)
        if not all(filled[items].any() for items in parts.values()):  # few have any: deal them as a class of their own
            parts = _divided(raw, config, name, units, filled.astype(np.int64))
        for split, items in parts.items():
            if len(items) and not filled[items].any():
                raise UserError(
                    f"{name}: nothing is marked in any of the {len(items)} images of the {split} split, so that it "
                    f"measures nothing; {int(filled.sum())} of {len(raw)} images have something marked. Add some, or "
                    "raise the fraction of that split."
                )
    for split, items in parts.items():
        if not len(items):
            raise UserError(
                f"{name}: the {split} split would be empty with data.split.validation={config.validation} and "
                f"data.split.test={config.test}: {len(raw)} images make {len(np.unique(units))} parts, as those that "
                "belong together stay together. Change a fraction or add images."
            )
    return parts


def has_objects(raw: RawDataset) -> NDArray[np.bool_]:
    """Say of each image with boxes or masks whether anything but background is marked in it: `(N,)`."""
    if raw.masks is None:
        return np.array([len(boxes) > 0 for boxes in raw.boxes or ()], dtype=np.bool_)
    marked = ((some != IGNORED) & (some > 0) for some in chunks(raw.masks))
    return np.concatenate([some.reshape(len(some), -1).any(axis=1) for some in marked])


def _divided(raw: RawDataset, config: SplitConfig, name: str, units: Items, labels: Items) -> dict[str, Items]:
    everything = np.arange(len(raw), dtype=np.int64)
    if raw.official_split is not None:
        in_test = raw.official_split == "test"
        _check_official(units, in_test, name)
    else:
        in_test = _cut(labels, units, everything, config.test, _generator(config.seed, 0))
    rest = everything[~in_test]
    in_validation = _cut(labels, units, rest, config.validation, _generator(config.seed, 1))
    train = _few(raw, rest[~in_validation], config, name)
    return {"train": train, "validation": rest[in_validation], "test": everything[in_test]}


def units_of(raw: RawDataset, copies: Items | None = None) -> Items:
    """Number for each image the set of images it must stay with: `(N,)`, equal numbers stay together.

    Two images belong together if they share a group, are equal to the byte, or are linked by a chain of such pairs.

    Args:
        raw: the data set.
        copies: `(N,)` for each image the first that is equal to it; None compares the array of images.
    """
    copies = first_copies(raw.pixels) if copies is None else copies
    if raw.groups is None:
        return copies
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, first_of_group, group = np.unique(raw.groups, return_index=True, return_inverse=True)
    items = np.arange(len(raw))
    start, end = np.concatenate([items, items]), np.concatenate([copies, first_of_group[group]])
    links = coo_array((np.ones(len(start), dtype=np.int8), (start, end)), shape=(len(raw), len(raw)))
    return connected_components(links, directed=False)[1].astype(np.int64)


def _check_fractions(raw: RawDataset, config: SplitConfig, name: str) -> None:
    if raw.official_split is not None and config.test > 0:
        raise UserError(
            f"data.split.test={config.test}: {name} has an official test split, which is kept; set data.split.test=0."
        )
    if raw.official_split is None and config.test == 0:
        raise UserError(
            f"data.split.test=0: {name} has no official test split; set a fraction, for example data.split.test=0.2."
        )
    if config.validation == 0:
        raise UserError(
            f"data.split.validation=0: {name} needs images for choosing the best epoch; set data.split.validation=0.1."
        )


def _check_official(units: Items, in_test: NDArray[np.bool_], name: str) -> None:
    """Refuse an official test split that shares a group with the training images."""
    shared = np.intersect1d(units[in_test], units[~in_test])
    if len(shared):
        train, test = (int(np.flatnonzero(where & (units == shared[0]))[0]) for where in (~in_test, in_test))
        raise UserError(
            f"{name}: images {train} and {test} belong to one group, but the official split puts them into train and "
            "test; correct groups or official_split in the source."
        )


def _few(raw: RawDataset, items: Items, config: SplitConfig, name: str) -> Items:
    """Draw `train_per_class` of the `items` of each class, ascending; all of them where it is null."""
    if config.train_per_class is None:
        return items
    if raw.labels is None:
        raise UserError(f"data.split.train_per_class: {name} has no class for each image; set it to null.")
    rng = _generator(config.seed, 2)
    drawn = []
    for number, title in enumerate(raw.classes):
        found = items[raw.labels[items] == number]
        if len(found) < config.train_per_class:
            raise UserError(
                f"data.split.train_per_class={config.train_per_class}: {name} has {len(found)} training images of "
                f"{title}; take at most so many."
            )
        drawn.append(rng.choice(found, config.train_per_class, replace=False))
    return np.sort(np.concatenate(drawn))


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))


def _cut(labels: Items, units: Items, items: Items, fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose whole units of `items` that make up about `fraction` of each label; `(len(items),)`, True where chosen.

    Units come in random order, large ones first, and each goes where it brings both sides nearer to their targets in
    the sense of least squares. Units of a single image thus meet the rounded targets of their class exactly.
    """
    labels = labels[items]
    numbers, unit = np.unique(units[items], return_inverse=True)
    histograms = np.zeros((len(numbers), int(labels.max(initial=0)) + 1), dtype=np.int64)
    np.add.at(histograms, (unit, labels), 1)
    totals = histograms.sum(axis=0)
    chosen_missing = np.floor(fraction * totals + 0.5).astype(np.int64)
    others_missing = totals - chosen_missing
    chosen = np.zeros(len(numbers), dtype=np.bool_)
    order = rng.permutation(len(numbers))
    for number in order[np.argsort(-histograms[order].sum(axis=1), kind="stable")]:
        histogram = histograms[number]
        chosen[number] = histogram @ (chosen_missing - others_missing) >= 0
        if chosen[number]:
            chosen_missing -= histogram
        else:
            others_missing -= histogram
    return chosen[unit]
