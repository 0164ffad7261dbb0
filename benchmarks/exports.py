"""Export the nets of finished runs in every format, and write how far they then are from the nets into docs/export.md.

    python benchmarks/exports.py runs/overview

The record lies beside this file (`exports.json`); runs that it has already, by their weights, are not exported again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from convatlas.core.errors import UserError
from convatlas.core.files import write_json, write_text
from convatlas.export import Options, export
from convatlas.measure import seeds_of
from convatlas.models.weights import digest
from convatlas.training.run import quieten_libraries
from convatlas.training.trained import load_run

RECORD = Path(__file__).with_name("exports.json")
PAGE = Path(__file__).parents[1] / "docs" / "export.md"
FORMATS = ("onnx", "torch_export", "safetensors", "timm")
BEGIN, END = "<!-- written by benchmarks/exports.py -->", "<!-- end -->"


def main() -> None:
    """Export what the record lacks, and write record and table after each run."""
    quieten_libraries()
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    for folder in [seed for each in sys.argv[1:] for seed in seeds_of(Path(each))]:
        trained = load_run(folder)
        name, weights = trained.config.variant, digest(trained.net.state_dict())
        if record.get(name, {}).get("weights") != weights:
            record[name] = {"weights": weights, "task": trained.config.data.task, **exported(folder)}
            write_json(RECORD, record)
            print(name, record[name], flush=True)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    write_text(PAGE, f"{before}{BEGIN}\n{table(record)}\n{END}{rest.partition(END)[2]}")


def exported(folder: Path) -> dict[str, Any]:
    """Return for each format the largest difference, "exact" for weights, or the reason for a refusal; and seconds."""
    found: dict[str, Any] = {}
    for name in FORMATS:
        start = time.perf_counter()
        with TemporaryDirectory() as temporary:
            options = Options(run=folder, format=[name])
            try:
                described = export(load_run(folder), name, Path(temporary) / name, options)
                found[name] = described.get("largest_difference", "exact")
            except UserError as error:
                found[name] = f"refused: {error}"
        found[f"{name}_seconds"] = round(time.perf_counter() - start, 1)
    return found


def table(record: dict[str, Any]) -> str:
    """Lay the record out as a table of Markdown, with the refusals below it."""
    lines = ["| net | task | " + " | ".join(f"`{name}`" for name in FORMATS) + " |", "|---" * 6 + "|"]
    refusals: list[str] = []
    for name, row in record.items():
        cells = []
        for each in FORMATS:
            value = row[each]
            if isinstance(value, float):
                cells.append("0" if value == 0 else f"{value:.1e}")
            elif value == "exact":
                cells.append("exact")
            else:
                reason = value.removeprefix("refused: ")
                refusals += [] if reason in refusals else [reason]
                cells.append(f"refused ({refusals.index(reason) + 1})")
        lines.append(f"| {name} | {row['task']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(refusals, start=1))])


if __name__ == "__main__":
    main()
