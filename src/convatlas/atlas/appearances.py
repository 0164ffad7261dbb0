"""In which studies each net appears, and what was found of the variants that are it, on each kind of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import OmegaConf

from convatlas.core.composing import conf_dir
from convatlas.reporting.findings import Finding, Row, rows
from convatlas.studies.claims import read_claim
from convatlas.studies.planning import Images, Study, study_names

__all__ = ["Appearance", "net_among", "read_appearances"]

OWN = {"made": "the study's own images"}
"""What records call the images of a study itself, and how to say it."""


@dataclass(frozen=True)
class Appearance:
    """A net in a study at scale laptop.

    Attributes:
        study: its name.
        title: its title.
        variants: the titles of the variants that train the net.
        rows: the comparisons that speak of these variants, with what was found on each kind of images.
        images: the kinds of images that these variants can be on with their titles, the study's own first.
    """

    study: str
    title: str
    variants: tuple[str, ...]
    rows: tuple[Row, ...]
    images: dict[str, str]


def net_among(overrides: Sequence[str]) -> str | None:
    """Return the net of `conf/model` that Hydra's overrides choose last; None where they choose none."""
    named = [override.partition("=")[2] for override in overrides if override.startswith("model=")]
    return named[-1] if named else None


def read_appearances(found: Sequence[Finding]) -> dict[str, list[Appearance]]:
    """Return the appearances of every net, in the alphabetical order of the studies."""
    others = _images()
    appearances: dict[str, list[Appearance]] = {}
    for name in study_names():
        file = conf_dir() / "study" / f"{name}.yaml"
        study = Study.model_validate(OmegaConf.to_container(OmegaConf.load(file), resolve=True))
        shared = study.overrides.get("laptop")
        if shared is None:
            continue
        of_net: dict[str, list[str]] = {}
        data: dict[str, set[str]] = {}
        for key, variant in study.variants.items():
            overrides = [*shared, *variant.overrides, *variant.laptop]
            if (net := net_among(overrides)) is not None:
                of_net.setdefault(net, []).append(key)
                named = [each.partition("=")[2] for each in overrides if each.startswith("data=")]
                data.setdefault(net, set()).update(named[-1:])
        own = rows(each for each in found if each.study == name and each.comparison)
        for net, keys in of_net.items():
            speaking = tuple(row for row in own if _variants(row) & set(keys))
            titles = tuple(study.variants[key].title for key in keys)
            images = OWN | {each: others[each].title for each in others if data[net] & set(others[each].instead_of)}
            appearances.setdefault(net, []).append(Appearance(name, study.title, titles, speaking, images))
    return appearances


def _images() -> dict[str, Images]:
    """Read `conf/images`, by name."""
    return {
        file.stem: Images.model_validate(OmegaConf.to_container(OmegaConf.load(file)))
        for file in sorted((conf_dir() / "images").glob("*.yaml"))
    }


def _variants(row: Row) -> set[str]:
    return {quantity.variant for quantity in read_claim(row.comparison, "the records of verdicts").quantities()}
