"""`python -m convatlas.prepare data=digits`: read or make a data set, verify, split, write it with card and page.

`python -m convatlas.prepare data=image_folder data.root=my_pictures` takes pictures of yours: it finds their classes
and a size, and writes `conf/data/my_pictures.yaml`, so that `data=my_pictures` means them from then on.

`python -m convatlas.prepare --from-plan digits` prepares as `plan/data/digits.yaml` says; that is what a stage of the
pipeline runs. What is prepared already, by the pipeline or by hand, stays. `--manifest pets` writes down what raw files
there are, for the stage before it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from convatlas.core.answers import answering, as_table, take_answering
from convatlas.core.cli import run, run_hydra
from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml, write_json
from convatlas.core.imports import quick_imports
from convatlas.core.targets import check_trusted
from convatlas.studies.planning import check_places, data_plan, manifest_file, reads_raw_files

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from convatlas.core.config import DataConfig
    from convatlas.data.card import Card

IDENTITY_FILE = "identity.json"
"""Beside the card: what decided the preparation, and whether a plan or a user asked for it."""
LISTED = 20
"""Classes whose counts are printed; the page has all."""


def main(config: DictConfig) -> Prepared:
    """Prepare the data set that the configuration names, and return what came out."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    checked = _checked(plain, "data")
    hydra = HydraConfig.get()
    chosen, words = hydra.runtime.choices["data"], list(hydra.overrides.task)
    keys = [word.partition("=")[0].lstrip("+") for word in words]
    given = [key.removeprefix("data.") for key in keys if key.startswith("data.")]
    page, written = Path(config.page), None
    if _is_own(chosen, given):
        from convatlas.data.own import adapted, settings_of, write_settings

        checked = adapted(checked, given)
        page = page if "page" in keys else page.with_name(f"{checked.name}.html")
    card = _prepare(checked, page, "user")
    if _is_own(chosen, given):
        written = write_settings(settings_of(checked, chosen, given), " ".join(words))
    return Prepared(
        card, checked, page, written, training_command(checked, written is not None or checked.name == chosen)
    )


class Prepared(NamedTuple):
    """What came out of a preparation.

    Attributes:
        card: of the data.
        config: by which they were prepared.
        page: where a user can look at them.
        written: the file of `conf/data` that was written for them.
        command: that trains on them; None where `data=<name>` does not mean them.
    """

    card: Card
    config: DataConfig
    page: Path
    written: Path | None
    command: str | None


def _is_own(chosen: str, given: Collection[str]) -> bool:
    """Say whether a user's data are named by their folder alone."""
    from convatlas.data.own import FORMATS

    return chosen in FORMATS and "root" in given and not {"name", "prepared"} & set(given)


FIRST_NETS = {
    "classification": "model=resnet18_small",
    "detection": "model=retinanet_small recipe=detection",
    "segmentation": "model=unet_small recipe=segmentation",
}
"""A small net that takes images of any size and classes of any number, by task."""


def training_command(config: DataConfig, named: bool) -> str | None:
    """Return a command that trains on a data set; None where `data=<name>` does not mean it."""
    net = FIRST_NETS.get(config.task)
    return f"python -m convatlas.train data={config.name} {net}" if named and net else None


def as_text(found: Prepared) -> str:
    """Lay out how many images each class has in each split, where they are, and what comes next."""
    card, config = found.card, found.config
    counts = ", ".join(f"{split} {count.images}" for split, count in card.counts.items())
    size = f"{config.image_size} x {config.image_size} pixels"
    lines = [
        f"{config.prepared}: {counts}; {len(card.rejected)} rejected; fingerprint {card.fingerprint[:12]}",
        f"{len(card.classes)} classes, {size} for the net; a look at them: {found.page}",
    ]
    stored = config.source.get("image_size", config.stored_side if config.storage == "arrays" else None)
    if stored not in (None, config.image_size):
        lines.append(f"Images are stored with a side of {stored} pixels; nets get them resized to {config.image_size}.")
    names = list(card.counts["train"].classes)
    if len(names) <= LISTED:
        counted = {"classification": "images", "detection": "objects"}.get(card.task, "pixels")
        rows = [[name, *(f"{each.classes[name]:,}" for each in card.counts.values())] for name in names]
        lines += ["", as_table([f"{counted} of", *card.counts], rows), ""]
    if found.written is not None:
        lines.append(f"{found.written} has the settings: data={config.name} means these data from now on.")
    return "\n".join(lines + ([f"To train on them: {found.command}"] if found.command else []))


def as_record(found: Prepared) -> dict[str, Any]:
    """Return the same for programs."""
    card = found.card
    return {
        "prepared": found.config.prepared.as_posix(),
        "page": found.page.as_posix(),
        "settings": None if found.written is None else found.written.as_posix(),
        "images": {split: count.images for split, count in card.counts.items()},
        "classes": {split: count.classes for split, count in card.counts.items()},
        "rejected": len(card.rejected),
        "fingerprint": card.fingerprint,
        "train": found.command,
    }


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
        print(as_text(Prepared(_prepare(config, page, "plan"), config, page, None, None)))
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


def _prepare(config: DataConfig, page: Path, asked_by: Literal["plan", "user"]) -> Card:
    with quick_imports():
        from convatlas.data.prepare_dataset import prepare
        from convatlas.reporting.data_page import check_page, write_data_page

    if config.module is not None:
        raise UserError(f"data={config.name} has batches of its own (data.module); there is nothing to prepare.")
    check_page(page)
    card = prepare(config)
    write_json(config.prepared / IDENTITY_FILE, {**_identity(config), "asked_by": asked_by})
    write_data_page(config.prepared, page)
    return card


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
    options, sys.argv[1:] = take_answering(sys.argv[1:])
    with answering(options) as answer:

        def finish(jobs: list[tuple[str, Prepared]]) -> None:
            for _, found in jobs:
                answer(as_text(found), as_record(found))

        run_hydra(main, "prepare", finish=finish)


if __name__ == "__main__":
    command()
