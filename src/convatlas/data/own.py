"""A user's own data under a name of its own: what their files say of the configuration, and `conf/data/<name>.yaml`."""

from __future__ import annotations

import inspect
import os
import re
import statistics
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, UnidentifiedImageError

from convatlas.core.composing import conf_dir
from convatlas.core.config import DataConfig
from convatlas.core.errors import UserError
from convatlas.core.files import write_text
from convatlas.core.targets import locate
from convatlas.data.image_files import ImageFiles
from convatlas.data.prepare_dataset import read_source

__all__ = ["FORMATS", "adapted", "settings_of", "write_settings"]

FORMATS = frozenset({"image_folder", "image_csv", "image_mask_folder", "yolo"})
"""The files of `conf/data` for pictures of one's own in one folder, `data.root`, in which all else is found."""
SIDES = (32, 64, 96, 128, 160, 224)
"""The sides of images that are chosen from: the largest that the pictures fill."""
LOOKED_AT = 200
"""Pictures whose sizes are read."""
HEAD = "# Written by `python -m convatlas.prepare"


def adapted(config: DataConfig, given: Collection[str]) -> DataConfig:
    """Give a user's data a name of their own, and the classes, size and channels that the files have.

    Args:
        config: composed of one of `FORMATS` and `data.root`.
        given: the keys below `data` that the command line has; what it says stays.

    Raises:
        UserError: the data cannot be read, or another data set has that name.
    """
    name = re.sub(r"[^a-z0-9]+", "_", config.root.resolve().name.lower()).strip("_") or "pictures"
    file = conf_dir() / "data" / f"{name}.yaml"
    if file.exists() and not file.read_text(encoding="utf-8").startswith(HEAD):
        raise UserError(f"{file} is another data set of this name; give yours one of its own: data.name={name}_2.")
    found: dict[str, Any] = {"name": name, "prepared": config.prepared.with_name(name)}
    load = locate(config.source["_target_"], "data.source._target_")
    if "title" in inspect.signature(load).parameters and "source.title" not in given:
        found["source"] = {**config.source, "title": config.root.resolve().name}
    raw = read_source(config)
    if "num_classes" not in given:
        found["num_classes"] = len(raw.classes)
    if isinstance(raw.images, ImageFiles) and not {"image_size", "stored_side"} & set(given):
        found["image_size"] = _side(raw.images.paths)
        if config.storage == "arrays":
            found["stored_side"] = found["image_size"]
    return config.model_copy(update=found)


def _side(paths: Iterable[Path]) -> int:
    """Return the largest of `SIDES` that half of the pictures fill, or the smallest."""
    chosen = list(paths)
    shorter: list[int] = []
    for path in chosen[:: max(1, len(chosen) // LOOKED_AT)]:
        try:
            with Image.open(path) as picture:
                shorter.append(min(picture.size))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError):
            continue  # the preparation says of each what it is
    median = statistics.median_low(shorter) if shorter else SIDES[0]
    return max((side for side in SIDES if side <= median), default=SIDES[0])


def settings_of(config: DataConfig, format_name: str, given: Iterable[str]) -> dict[str, Any]:
    """Return what a file of `conf/data` says of adapted data beside what its format says."""
    plain = config.model_dump(mode="json")
    titled = ["source.title"] if "title" in plain["source"] else []
    keys = ["name", *titled, "root", "image_size", "in_channels", "num_classes", *given]
    settings: dict[str, Any] = {"defaults": [format_name, "_self_"]}
    for key in dict.fromkeys(keys):
        place, value = settings, plain
        *above, last = key.split(".")
        for part in above:
            place, value = place.setdefault(part, {}), value[part]
        place[last] = value[last]
    return settings


def write_settings(settings: Mapping[str, Any], command: str) -> Path:
    """Write `conf/data/<name>.yaml`, by which `data=<name>` means these data from now on."""
    file = Path(os.path.relpath(conf_dir() / "data" / f"{settings['name']}.yaml"))
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_text(file, f"{HEAD} {command}`; edit it as you like.\n{text}")
    return file
