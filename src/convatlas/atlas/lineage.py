"""How the nets grew out of one another: families, years, and the idea on each edge, from `lineage.yaml`."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from convatlas.core.config import Section
from convatlas.core.files import read_yaml

__all__ = ["Edge", "Family", "Lineage", "read_lineage"]

FILE = Path(__file__).with_name("lineage.yaml")


class Edge(Section):
    """What a family took from another: the kind of the idea, and the idea in words."""

    net: str
    idea: str
    by: str
    lecture: bool = False
    """The course's own picture has it."""


class Family(Section):
    """A paper's nets.

    `year` is that of the first public version, `link` leads to the paper, `nets` are patterns of names in `conf/model`.
    """

    title: str
    year: int
    task: Literal["classification", "detection", "segmentation"]
    link: Annotated[str, Field(pattern=r"^https://")]
    nets: tuple[str, ...]
    parents: Annotated[tuple[Edge, ...], Field(alias="from")] = ()

    def includes(self, net: str) -> bool:
        """Say whether a net's name fits one of the patterns."""
        return any(fnmatchcase(net, pattern) for pattern in self.nets)


class Lineage(Section):
    """All families by name, those before that others grew out of, and the kinds of ideas with their titles."""

    ideas: dict[str, str]
    families: dict[str, Family]

    @model_validator(mode="after")
    def _is_a_history(self) -> Lineage:
        known: dict[str, Family] = {}
        for name, family in self.families.items():
            for edge in family.parents:
                if edge.net not in known or known[edge.net].year > family.year or edge.idea not in self.ideas:
                    raise ValueError(f"{name} cannot have grown out of {edge.net} by {edge.idea}")
            known[name] = family
        return self

    def members(self, nets: Iterable[str]) -> dict[str, list[str]]:
        """Return the nets of each family that has any; a net without a family is left out."""
        found: dict[str, list[str]] = {name: [] for name in self.families}
        for net in nets:
            family = next((name for name, each in self.families.items() if each.includes(net)), None)
            if family is not None:
                found[family].append(net)
        return {name: names for name, names in found.items() if names}


@cache
def read_lineage() -> Lineage:
    """Read the lineage."""
    return Lineage.model_validate(read_yaml(FILE, "install convatlas anew."))
