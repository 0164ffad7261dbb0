"""`python -m convatlas.reporting.recipe_page`: writes docs/recipes.md, each paper's recipe with ours beside it.

Theirs is what conf/sources.yaml says, ours is composed from the study's variant at scale=paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convatlas.core.cli import run
from convatlas.core.composing import conf_dir, hydra_ready
from convatlas.core.config import RunConfig
from convatlas.core.files import read_yaml, write_text
from convatlas.studies.planning import load_study, planned_runs

__all__ = ["FACTS", "NOT_STATED", "page", "paper_runs", "steps_per_epoch"]

PAGE = Path("docs/recipes.md")
NOT_STATED = "not stated"
HEAD = """# The papers' recipes, and ours at scale=paper

Written by `python -m convatlas.reporting.recipe_page` from conf/; do not edit it. In a cell the authors' way stands
first and ours below it, in italics. {facts} facts of {systems} systems; {memory} of them ({share:.1f} %, marked †) rest
on memory, {unknown} are not stated by the authors, and the head of the recipe says what was chosen. The authors'
precision is float32.

Everywhere: images are normalised by mean and standard deviation of each channel, changes of brightness, contrast,
saturation and hue come in that order, and an epoch leaves out its last incomplete batch. `last_epoch` trains on all
training images and tests the last epoch; `best_epoch` holds images out and tests the epoch that is best on them.

"""


def steps_per_epoch(config: RunConfig, images: int) -> int:
    """Return the optimiser steps of an epoch on a data set of so many training images, held-out ones included."""
    held_out = config.data.split.validation if config.recipe.protocol == "best_epoch" else 0.0
    return round(images * (1 - held_out)) // config.recipe.batch_size


def paper_runs(systems: list[dict[str, Any]]) -> dict[str, RunConfig]:
    """Compose the runs that the systems name, `<study>/<variant>`, at scale=paper."""
    named = sorted({tuple(system["run"].split("/")) for system in systems})
    runs: dict[str, RunConfig] = {}
    with hydra_ready():
        for name in sorted({study for study, _ in named}):
            study, scale = load_study(name, "paper")
            variants = {each: study.variants[each] for of, each in named if of == name}
            planned = planned_runs(study.model_copy(update={"variants": variants}), scale, [0], ())
            runs |= {run.key: run.config for run in planned}
    return runs


def page(sources: Mapping[str, Any], runs: Mapping[str, RunConfig]) -> str:
    """Return the page; `runs` are those of `paper_runs`."""
    systems = sources["systems"]
    told = [str(system[fact]) for system in systems for fact in FACTS]
    memory = sum(len(system.get("memory", ())) for system in systems)
    text = HEAD.format(
        facts=len(told),
        systems=len(systems),
        memory=memory,
        share=100 * memory / len(told),
        unknown=sum(each.startswith(NOT_STATED) for each in told),
    )
    columns = ["system", *FACTS, "precision", "source", "deviations"]
    rows = [_row(system, runs[system["run"]], sources["images"][runs[system["run"]].data.name]) for system in systems]
    lines = [columns, ["---"] * len(columns), *rows]
    return text + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(system: Mapping[str, Any], config: RunConfig, images: int | None) -> list[str]:
    steps = None if images is None else steps_per_epoch(config, images)
    cells = [
        f"{system[fact]}{' †' if fact in system.get('memory', ()) else ''}<br>*{ours(config, steps)}*"
        for fact, ours in FACTS.items()
    ]
    title = f"{system['title']} (`{system['run']}`)"
    return [title, *cells, config.trainer.precision, system["source"], system["deviations"]]


def _optimizer(config: RunConfig, _steps: int | None) -> str:
    section = config.recipe.optimizer
    return _called(section, {"lr", "weight_decay"})


def _rate(config: RunConfig, _steps: int | None) -> str:
    return f"{config.recipe.optimizer['lr']}, {_called(config.recipe.schedule)}"


def _length(config: RunConfig, steps: int | None) -> str:
    epochs = config.recipe.epochs
    return f"{epochs} epochs" if steps is None else f"{epochs} epochs, {epochs * steps:,} steps"


def _decay(config: RunConfig, _steps: int | None) -> str:
    recipe = config.recipe
    rate = recipe.optimizer.get("weight_decay", 0.0)
    if not rate:
        return "none"
    of = "all" if recipe.decay_norms_and_biases else "kernels and matrices"
    without = f" but {', '.join(f'`{pattern}`' for pattern in recipe.no_decay)}" if recipe.no_decay else ""
    return f"{rate} of {of}{without}" + (
        f", biases at {recipe.bias_rate} times the rate" if recipe.bias_rate != 1 else ""
    )


def _images(config: RunConfig, _steps: int | None) -> str:
    given = config.recipe.augmentation.model_dump(exclude_defaults=True)
    shown = [f"{key} {value}" for key, value in given.items() if value and key != "least_box_area"]
    smoothing = config.recipe.loss.get("label_smoothing")
    return ", ".join(shown + ([f"label_smoothing {smoothing}"] if smoothing else [])) or "as they are"


def _test(config: RunConfig, _steps: int | None) -> str:
    side, share = config.data.image_size, config.recipe.test_crop
    seen = f"{side} pixels" if share == 1 else f"centre {side} of {round(side / share)} pixels"
    return f"{seen}, {config.recipe.protocol}"


def _averaging(config: RunConfig, _steps: int | None) -> str:
    return str(config.recipe.ema_decay or "none")


def _called(section: Mapping[str, Any], without: set[str] | frozenset[str] = frozenset()) -> str:
    name = str(section["_target_"]).rpartition(".")[2]
    rest = [f"{key} {value}" for key, value in section.items() if key not in {"_target_", *without} and value != 0]
    return ", ".join([name, *rest])


FACTS: dict[str, Callable[[RunConfig, int | None], str]] = {
    "optimizer": _optimizer,
    "rate": _rate,
    "batch": lambda config, _steps: f"{config.recipe.batch_size:,}",
    "length": _length,
    "decay": _decay,
    "images": _images,
    "test": _test,
    "averaging": _averaging,
}
"""The columns of facts: what the authors did is in conf/sources.yaml, what we do is read from the configuration."""


def main() -> None:
    """Write the page of this repository."""
    sources: dict[str, Any] = read_yaml(conf_dir() / "sources.yaml", "restore the file.")
    write_text(PAGE, page(sources, paper_runs(sources["systems"])))
    print(PAGE)


if __name__ == "__main__":
    run(main)
