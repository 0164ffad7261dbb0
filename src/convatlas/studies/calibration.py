"""What `python -m convatlas.calibrate` chose for the variants of a study, kept in `conf/calibration/<study>.yaml`.

Every variant is trained with each choice of the grid of `conf/scale`, on a seed that no study uses, and the one with
the best validation score is taken. The file says all that was tried.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from convatlas.core.composing import conf_dir
from convatlas.core.config import Section, describe
from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml

__all__ = ["CALIBRATED", "Calibration", "Tried", "calibration_file", "choices", "read_calibration"]

CALIBRATED = "laptop"
"""The scale whose optimisers and rates are chosen so; at the others they are the papers'."""


class Tried(Section):
    """What was tried for one variant.

    Attributes:
        config: digest of its configuration without the choice.
        scores: best validation score by choice, the overrides joined by blanks; null where the training diverged.
        chosen: the choice with the best score; null while some are missing, or where all diverged.
    """

    config: str
    scores: dict[str, float | None] = Field(default={})
    chosen: str | None = None


class Calibration(Section):
    """`conf/calibration/<study>.yaml`.

    Attributes:
        seed: what all were trained with.
        variants: what was tried, by the variant's key.
    """

    seed: int = 100
    variants: dict[str, Tried] = Field(default={})

    def plain(self) -> dict[str, object]:
        """Return plain values, as the file has them."""
        return self.model_dump(mode="json")


def calibration_file(study: str) -> Path:
    """Return the file that keeps what was chosen for a study."""
    return conf_dir() / "calibration" / f"{study}.yaml"


def read_calibration(study: str) -> Calibration:
    """Read what was tried for a study; an empty one where nothing was.

    Raises:
        UserError: the file is not as `calibrate` writes it.
    """
    file = calibration_file(study)
    if not file.is_file():
        return Calibration()
    remedy = f"delete it, and run `python -m convatlas.calibrate study={study}`."
    try:
        return Calibration.model_validate(read_yaml(file, remedy))
    except ValidationError as error:
        raise UserError(describe(error, str(file))) from error


def choices(study: str) -> dict[str, list[str]]:
    """Return the overrides that were chosen, by variant."""
    tried = read_calibration(study).variants
    return {name: each.chosen.split() for name, each in tried.items() if each.chosen is not None}
