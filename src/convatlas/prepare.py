"""`python -m convatlas.prepare data=digits`: read or make a data set, verify, split, write it with card and page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.cli import run_hydra
from convatlas.core.imports import quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Prepare the data set that the configuration names, and print what came out."""
    from omegaconf import OmegaConf
    from pydantic import ValidationError

    from convatlas.core.config import DataConfig, describe
    from convatlas.core.errors import UserError

    with quick_imports():
        from convatlas.data.prepare_dataset import prepare
        from convatlas.reporting.data_page import write_data_page

    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    try:
        checked = DataConfig.model_validate(plain)
    except ValidationError as error:
        raise UserError(describe(error, "data")) from error
    card = prepare(checked)
    page = Path(config.page)
    write_data_page(checked.prepared, page)
    counts = ", ".join(f"{split} {count.images}" for split, count in card.counts.items())
    print(f"{checked.prepared}: {counts}; {len(card.rejected)} rejected; fingerprint {card.fingerprint[:12]}")
    print(page)


if __name__ == "__main__":
    run_hydra(main, "prepare")
