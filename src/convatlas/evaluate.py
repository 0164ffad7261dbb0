"""`python -m convatlas.evaluate run=runs/overview/lenet5/seed=0 [tta=ten_crop]`: a trained net's metrics once more.

Beside each metric stands what the run's record has, or with `tta` the single view's, with what the views cost. The
run's own files stay as they are; `output_dir` writes `evaluation.json` and `predictions.parquet` elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convatlas.core.answers import Answering, answering, as_table
from convatlas.core.cli import read_options, run
from convatlas.core.config import View
from convatlas.core.errors import UserError
from convatlas.core.files import write_json
from convatlas.core.folders import check_replaceable, written_folder
from convatlas.core.imports import quick_imports
from convatlas.core.metrics import metric
from convatlas.core.record import RunRecord
from convatlas.reporting.wording import DASH, duration, metric_text, with_prefix

if TYPE_CHECKING:
    from torch import nn


class Options(Answering):
    """What the command line may say."""

    run: Path
    checkpoint: Path | None = None
    """Weights to take instead of the run's best.ckpt."""
    part: str | None = None
    """A part of the net that works alone, such as column_3 of a FractalNet."""
    split: Literal["test", "validation"] = "test"
    tta: View | Literal["none"] = "none"
    """Views of the images, for classification; the single view's figures stand beside its own."""
    data: Path | None = None
    """Where the run's prepared data lie now, if they were moved."""
    output_dir: Path | None = None


def main() -> None:
    """Evaluate a run and print its metrics."""
    options = read_options(Options, sys.argv[1:])
    with answering(options) as answer:
        found = evaluate(options)
        part = "" if options.part is None else f", {options.part}"
        lines = [f"{options.run}{part}, {options.split} split:", *as_text(found, options)]
        answer("\n".join(lines), found)


def evaluate(options: Options) -> dict[str, Any]:
    """Evaluate a run on one of its data's splits.

    Returns:
        The metrics by name. With test-time augmentation those of the single view and of the views, and what each costs:
        `{"single_view": {...}, "<tta>": {...}, "cost": {...}}`, see `costs_of_views`.
    """
    with quick_imports():
        import torch

        from convatlas.models.build import part_of
        from convatlas.tasks.views import with_views
        from convatlas.training.run import quieten_libraries
        from convatlas.training.testing import tested
        from convatlas.training.trained import load_run

    quieten_libraries()
    if options.output_dir is not None:
        check_replaceable(options.output_dir, "evaluate", "output_dir")
    trained = load_run(options.run, options.checkpoint, options.data)
    if options.split == "validation" and trained.config.recipe.protocol == "last_epoch":
        raise UserError("split=validation: with recipe.protocol=last_epoch the net was trained on it; take split=test.")
    torch.set_num_threads(trained.config.trainer.threads)
    net = part_of(trained.net, options.part)
    augmented = None if options.tta == "none" else with_views(net, options.tta, trained.config, f"tta={options.tta}")
    if (batches := trained.config.trainer.limit_batches) is not None:
        print(f"All images are tested; the record is of trainer.limit_batches={batches} batches.", file=sys.stderr)
    single_view, rows = tested(trained, net, options.split)
    found: dict[str, Any] = single_view
    if augmented is not None:
        with_all, rows = tested(trained, augmented, options.split)
        data = trained.config.data
        cost = costs_of_views(net.cpu(), augmented.cpu(), (data.in_channels, data.image_size, data.image_size))
        found = {"single_view": single_view, options.tta: with_all, "cost": cost}
    if options.output_dir is not None:
        how = {"split": options.split, "part": options.part, "tta": options.tta}
        with written_folder(options.output_dir, "evaluate", "output_dir") as partial:
            write_json(partial / "evaluation.json", how | found)
            rows.to_parquet(partial / "predictions.parquet", index=False)
    return found


def costs_of_views(net: nn.Module, augmented: nn.Module, shape: tuple[int, int, int]) -> dict[str, float]:
    """Measure what one image costs a net, and with all its views.

    Args:
        net: the net, on the CPU.
        augmented: the net over several views.
        shape: `(channels, height, width)` of an image.

    Returns:
        `macs` and `seconds` (median of 20) of the single view, `macs_augmented` and `seconds_augmented`, and the
        quotients `macs_factor` and `seconds_factor`.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from convatlas.models.costs import measure_latency

    found: dict[str, float] = {}
    for suffix, each in (("", net), ("_augmented", augmented)):
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            each.eval()(torch.zeros(1, *shape))
        found[f"macs{suffix}"] = counter.get_total_flops() // 2  # two FLOPs are one multiply-add
        found[f"seconds{suffix}"] = measure_latency(each, shape)
    factors = {f"{what}_factor": found[f"{what}_augmented"] / max(found[what], 1e-9) for what in ("macs", "seconds")}
    return found | factors


def as_text(found: Mapping[str, Any], options: Options) -> list[str]:
    """Lay metrics out in lines: those of the views beside the single view's, or those of now beside the record's."""
    if options.tta == "none":
        recorded = _recorded(options)
        return [as_table(["metric", "in the record", "now"], _rows(recorded, found))]
    one, all_views, cost = found["single_view"], found[options.tta], found["cost"]
    rows = [[*row, ""] for row in _rows(one, all_views)]
    for name, title, write in (("macs", "MACs an image", with_prefix), ("seconds", "time an image", duration)):
        pair = [write(cost[name]), write(cost[f"{name}_augmented"])]
        rows.append([title, *pair, f"x {cost[f'{name}_factor']:.1f}"])
    table = as_table(["metric", "single view", options.tta, ""], rows)
    first = metric(next(iter(name for name in one if metric(name).direction == "max"), next(iter(one))))
    gain = first.sign * first.factor * (all_views[first.name] - one[first.name])
    points = f"{abs(gain):.2f}{' points' if first.is_share else ''}"
    said = f"better by {points}" if gain > 0 else f"worse by {points}" if gain < 0 else "the same"
    return [table, "", f"With {options.tta}, {first.title} is {said}, at {cost['macs_factor']:.1f} times the MACs."]


def _recorded(options: Options) -> Mapping[str, float | None]:
    """Return the test metrics that the run's record has of the net, or of the part; none of the validation."""
    seeds = [options.run, *sorted(options.run.glob("seed=*"))]
    folder = next(seed for seed in seeds if RunRecord.is_in(seed))
    metrics = RunRecord.read(folder).metrics
    tested = metrics.test if options.part is None else metrics.parts.get(options.part, {})
    return tested if options.split == "test" else {}


def _rows(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> list[list[str]]:
    """Return title, value before and value after of each metric."""

    def text(name: str, value: float | None) -> str:
        return metric_text(metric(name), value) + (" %" if metric(name).is_share and value is not None else "")

    return [
        [metric(name).title, text(name, before[name]) if name in before else DASH, text(name, value)]
        for name, value in after.items()
    ]


if __name__ == "__main__":
    run(main)
