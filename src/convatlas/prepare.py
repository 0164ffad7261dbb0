"""`python -m convatlas.prepare data=digits`: read or make a data set, verify, split, write it with card and page.

`python -m convatlas.prepare --from-plan digits` prepares as `plan/data/digits.yaml` says; that is what a stage of the
pipeline runs. What is prepared already, by the pipeline or by hand, stays. `--manifest pets` writes down what raw files
there are, for the stage before it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convatlas.core.cli import run, run_hydra
from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml, write_json
from convatlas.core.imports import quick_imports
from convatlas.core.targets import check_trusted
from convatlas.studies.planning import check_places, data_plan, manifest_file, reads_raw_files

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from convatlas.core.config import DataConfig

IDENTITY_FILE = "identity.json"
"""Beside the card: what decided the preparation, and whether a plan or a user asked for it."""


def main(config: DictConfig) -> None:
    """Prepare the data set that the configuration names, and print what came out."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    _prepare(_checked(plain, "data"), Path(config.page), "user")


def from_plan(name: str) -> None:
    """Prepare a data set of the plan, unless it is prepared just so."""
    planned = _planned(name)
    check_trusted(planned["config"], str(data_plan(name)))
    config = _checked(planned["config"], str(data_plan(name)))
    check_places(data_plan(name), prepared=config.prepared)
    prepare_as_planned(config, Path(planned["page"]["file"]))


def prepare_as_planned(config: DataConfig, page: Path) -> None:
    """Prepare a data set, unless it is prepared just so, and write its page."""
    if not _is_prepared(config):
        _prepare(config, page, "plan")
        return
    from convatlas.reporting.data_page import write_data_page

    write_data_page(config.prepared, page)
    print(f"{config.prepared} is prepared already.")


def write_manifest(name: str) -> None:
    """Write down what raw files there are of a data set of the plan."""
    from convatlas.data.manifest import manifest

    write_json(manifest_file(name), manifest(_checked(_planned(name)["config"], str(data_plan(name))).root))


def _planned(name: str) -> dict[str, Any]:
    file = data_plan(name)
    planned = read_yaml(file, "run `dvc repro resolve`.")
    sections = [planned.get(key) for key in ("config", "page")] if isinstance(planned, dict) else [None]
    if not all(isinstance(section, dict) for section in sections) or "file" not in planned["page"]:
        raise UserError(f"{file} plans no preparation; run `dvc repro -f resolve`.")
    check_places(file, page=Path(str(planned["page"]["file"])))
    return planned


def _checked(plain: Any, where: str) -> DataConfig:
    from pydantic import ValidationError

    from convatlas.core.config import DataConfig, describe

    try:
        return DataConfig.model_validate(plain)
    except ValidationError as error:
        raise UserError(describe(error, where)) from error


def _prepare(config: DataConfig, page: Path, asked_by: Literal["plan", "user"]) -> None:
    with quick_imports():
        from convatlas.data.prepare_dataset import prepare
        from convatlas.reporting.data_page import check_page, write_data_page

    if config.module is not None:
        raise UserError(f"data={config.name} has batches of its own (data.module); there is nothing to prepare.")
    check_page(page)
    card = prepare(config)
    write_json(config.prepared / IDENTITY_FILE, {**_identity(config), "asked_by": asked_by})
    write_data_page(config.prepared, page)
    counts = ", ".join(f"{split} {count.images}" for split, count in card.counts.items())
    print(f"{config.prepared}: {counts}; {len(card.rejected)} rejected; fingerprint {card.fingerprint[:12]}")
    stored = config.source.get("image_size", config.stored_side if config.storage == "arrays" else None)
    if stored not in (None, config.image_size):
        print(f"Images are stored with a side of {stored} pixels; nets get them resized to {config.image_size}.")
    print(page)


def _identity(config: DataConfig) -> dict[str, Any]:
    """Return what decides a preparation: configuration, raw files, code and libraries."""
    from convatlas.core.source_code import prepare_code
    from convatlas.data.manifest import manifest

    source = config.source["_target_"]
    raw = manifest(config.root) if reads_raw_files(source) else None
    return {"config": config.model_dump(mode="json"), "raw": raw, **prepare_code(source).plain()}


def _is_prepared(config: DataConfig) -> bool:
    """Say whether the folder holds what the plan wants, every file whole.

    Raises:
        UserError: a user prepared it with other options; a plan does not undo that.
    """
    from convatlas.core.files import read_json
    from convatlas.data.prepared import PreparedData

    file = config.prepared / IDENTITY_FILE
    if not file.is_file():
        return False
    found, wanted = read_json(file, "delete the folder and prepare again."), _identity(config)
    by_user = isinstance(found, dict) and found.pop("asked_by", None) == "user"
    if by_user and (other := _difference(found.get("config") or {}, wanted["config"])):
        raise UserError(
            f"{config.prepared} was prepared by hand with other options than the plan's ({other}), and a plan does not "
            f"undo that. Delete the folder to have it prepared as planned, or set the options in "
            f"conf/data/{config.name}.yaml."
        )
    if found != wanted:
        return False
    try:
        PreparedData.open(config.prepared, verify=True)
    except UserError as error:
        print(f"{error} It is prepared again.")
        return False
    return True


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    from convatlas.core.digests import flat

    old, new = flat(found), flat(wanted)
    return "; ".join(
        f"data.{key}: {old.get(key)}, planned {new.get(key)}"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    )


def command() -> None:
    """Run the command line."""
    stages = {"--from-plan": from_plan, "--manifest": write_manifest}
    if chosen := stages.get("".join(sys.argv[1:2])):
        if len(sys.argv) != 3:
            run(lambda: (_ for _ in ()).throw(UserError(f"{sys.argv[1]} takes one data set, for example digits.")))
        run(lambda: chosen(sys.argv[2]))
    run_hydra(main, "prepare")


if __name__ == "__main__":
    command()
