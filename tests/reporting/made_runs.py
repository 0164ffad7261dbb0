"""Plans and runs made up for the tests of the report: the files of real ones, with figures chosen here."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from convatlas.core.digests import digest

ENVIRONMENT: dict[str, Any] = {
    "python": "3.11.9",
    "platform": "Linux-x86_64",
    "processor_cores": 2,
    "gpu": None,
    "threads": 2,
    "packages": {"torch": "2.8.0", "timm": "1.0.20"},
    "command": "python -m convatlas.train",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
}
COSTS: dict[str, Any] = {
    "parameters": 272_474,
    "macs": 41_000_000,
    "macs_inference": 40_813_184,
    "weight_megabytes": 1.098,
    "activation_bytes": 19_300_000,
    "batch_size": 64,
}

Epochs = Sequence[Mapping[str, float]]


@dataclass
class MadeVariant:
    """One variant: the test metrics of each seed that finished, and whatever else a test wants to choose."""

    test: Mapping[int, Mapping[str, float | None]]
    title: str = ""
    note: str = ""
    overrides: Sequence[str] = ()
    task: str = "classification"
    data: str = "digits"
    monitor: str = "val/accuracy"
    monitor_mode: str = "max"
    about: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Any] = field(default_factory=lambda: COSTS)
    train_seconds: float = 30.0
    fingerprint: str = "sha256:aa"
    environment: Mapping[str, Any] = field(default_factory=lambda: ENVIRONMENT)
    history: Mapping[int, Epochs] = field(default_factory=dict)
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    test_images: int = 360
    answers: Mapping[int, Sequence[int]] = field(default_factory=dict)  # by seed, the class named for each test image
    labels: Sequence[int] = ()
    failures: Mapping[int, str] = field(default_factory=dict)
    prepared: Path | None = None


def accuracies(*values: float) -> dict[int, dict[str, float | None]]:
    """Give the seeds 0, 1, ... these test accuracies."""
    return {seed: {"accuracy": value} for seed, value in enumerate(values)}


def make_study(
    folder: Path,
    variants: Mapping[str, MadeVariant],
    name: str = "overview",
    seeds: Sequence[int] = (0, 1, 2),
    **plan: Any,
) -> tuple[Path, Path]:
    """Write the plan and the runs of a study; return its plan's file and the folder of runs."""
    study_file, runs = folder / "plan" / f"{name}.yaml", folder / "runs"
    (study_file.parent / name).mkdir(parents=True)
    entries = {
        key: {"title": made.title or key, "overrides": list(made.overrides), "note": made.note or None}
        for key, made in variants.items()
    }
    whole = {"name": name, "title": name.capitalize(), "scale": "laptop", "seeds": list(seeds), "variants": entries}
    study_file.write_text(yaml.safe_dump(whole | plan, sort_keys=False))
    for key, made in variants.items():
        resolved = {
            "study": name,
            "variant": key,
            "seeds": list(seeds),
            "data": {"name": made.data, "task": made.task, "prepared": str(made.prepared) if made.prepared else None},
            "about": {"title": made.title or key, **made.about},
            "model": {},
        }
        (study_file.parent / name / f"{key}.yaml").write_text(yaml.safe_dump({"config": resolved}, sort_keys=False))
        for seed in made.test:
            make_run(runs / name / key / f"seed={seed}", made, seed)
        for seed, error in made.failures.items():
            (runs / name / key / f"seed={seed}").mkdir(parents=True)
            (runs / name / key / f"seed={seed}" / "failure.json").write_text(json.dumps({"error": error}))
    return study_file, runs


def make_run(folder: Path, made: MadeVariant, seed: int) -> None:
    """Write the files of one finished seed."""
    folder.mkdir(parents=True)
    history = made.history.get(seed) or rising_history(made.monitor)
    best = max(range(len(history)), key=lambda n: history[n].get(made.monitor, 0))
    metrics = {
        "seed": seed,
        "task": made.task,
        "data": made.data,
        "monitor": made.monitor,
        "monitor_mode": made.monitor_mode,
        "epochs": len(history),
        "best_epoch": best + 1,
        "best": {key: value for key, value in history[best].items() if "/" in key},
        "last": {key: value for key, value in history[-1].items() if "/" in key},
        "test": dict(made.test[seed]),
        "costs": dict(made.costs),
        "data_fingerprint": made.fingerprint,
    }
    timing = {"train_seconds": made.train_seconds + seed, "test_seconds": 0.4, "latency_seconds": 0.0021}
    for name, value in (("metrics", metrics), ("timing", timing), ("environment", made.environment)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    predictions: dict[str, Any] = {"index": list(range(made.test_images))}
    if seed in made.answers:
        answers, labels = list(made.answers[seed]), list(made.labels)
        predictions = {"index": list(range(len(labels))), "label": labels, "prediction": answers}
    pq.write_table(pa.table(predictions), folder / "predictions.parquet")
    for name, image in made.pictures.items():
        (folder / "figures").mkdir(exist_ok=True)
        image.save(folder / "figures" / f"{name}.png")


def rising_history(monitor: str, scores: Sequence[float] = (0.5, 0.75, 0.7)) -> Epochs:
    """Make an epoch for each validation score."""
    return [{"epoch": n, "lr": 0.1, "train/loss": 2 / n, monitor: score} for n, score in enumerate(scores, start=1)]


def write_latencies(study: Path, seconds: Mapping[str, float], identity: Mapping[str, Any] | None = None) -> None:
    """Write what `convatlas measure record=true` leaves in a study's folder, of runs with this identity.

    A training step takes ten times as long as an answer.
    """
    nets = {k: {"identity": digest(identity), "latency": s, "training_step": 10 * s} for k, s in seconds.items()}
    found = {"runtime": "torch", "threads": 1, "batch": 1, "machine": "a processor", "nets": nets}
    (study / "speed.json").write_text(json.dumps(found))
