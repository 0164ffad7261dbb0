"""A net that a search found, built from its architecture file.

An architecture file says which family of this project the net belongs to and with which arguments it is built:

    family: fbnet                 # fbnet | nasnet | darts | efficientnet
    found: {search: fbnet_dnas}   # how it was found; not read
    net: {blocks: [[k3_e3], [k5_e6, skip]], ...}

`python -m convatlas.search` writes such files; users may write them as well.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from convatlas.core.files import read_yaml
from convatlas.core.targets import checked_arguments
from convatlas.models.classification.darts import DartsNet
from convatlas.models.classification.efficientnet import efficientnet
from convatlas.models.classification.fbnet import BlockNet
from convatlas.models.classification.nasnet import NASNet

FAMILIES: Mapping[str, Callable[..., nn.Module]] = {
    "fbnet": BlockNet,
    "nasnet": NASNet,
    "darts": DartsNet,
    "efficientnet": efficientnet,
}


def searched(architecture: str | Mapping[str, Any], *, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build the net of an architecture file: `(B, C, H, W) -> (B, num_classes)` logits.

    Args:
        architecture: the file, or what stands in it.

    Raises:
        UserError: the file is missing or not YAML, or an argument of the net is wrong.
        ValueError: the family is not known, or an argument is outside the range that the net takes.
    """
    found = read_architecture(architecture)
    target = FAMILIES[found["family"]]
    given = {**found["net"], "num_classes": num_classes, "in_channels": in_channels}
    return target(**checked_arguments(target, given, "model.architecture.net"))


def read_architecture(architecture: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return `family`, `net`, and what else an architecture file says.

    Raises:
        UserError: the file is missing or not YAML.
        ValueError: a key is missing, or the family is not known.
    """
    place = "model.architecture"
    if isinstance(architecture, (str, Path)):
        place = str(architecture)
        architecture = read_yaml(
            Path(architecture), "run `python -m convatlas.search`, which writes one, or correct model.architecture."
        )
    if not isinstance(architecture, Mapping) or not isinstance(architecture.get("net"), Mapping):
        raise ValueError(f"{place} is no architecture: it must have the keys family and net.")
    family = architecture.get("family")
    if family not in FAMILIES:
        raise ValueError(f"{place}: family={family} is not known; choose one of {', '.join(FAMILIES)}.")
    return dict(architecture)
