"""Functions that tests of several rooms use."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convatlas.core.composing import hydra_ready
from convatlas.core.config import DataConfig

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = Path("/usr/bin/chromium")
TASKS_DATA = {"classification": "digits", "detection": "digit_scenes", "segmentation": "heart_phantom"}


def prepare_data(name: str, folder: Path, options: Sequence[str] = ()) -> Path:
    """Prepare a data set below a folder, as `python -m convatlas.prepare` does."""
    from hydra import compose
    from omegaconf import OmegaConf

    from convatlas.data.prepare_dataset import prepare

    with hydra_ready():
        overrides = [f"data={name}", f"data.prepared={folder / name}", *options]
        plain = OmegaConf.to_container(compose("prepare", overrides).data, resolve=True)
    prepare(DataConfig.model_validate(plain))
    return folder / name


def source_options(prepared: Path) -> list[str]:
    """Return the overrides that name the source's options as a prepared data set was made with them."""
    source = json.loads((prepared / "dataset.json").read_text())["source"]
    return [f"data.source.{key}={json.dumps(value)}" for key, value in source.items() if key != "_target_"]


def train_outside(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a training in processes of its own, from a folder that sees the configuration; fails where it fails."""
    (folder / "conf").symlink_to(ROOT / "conf")
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def mlflow_record(address: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return what MLflow has of every run: status, place, files, parameters, metrics but those in seconds."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    client = MlflowClient(tracking_uri=address)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], run_view_type=ViewType.ACTIVE_ONLY):
            metrics = {}
            for name in run.data.metrics:
                history = sorted(client.get_metric_history(run.info.run_id, name), key=lambda each: each.step)
                steps = [each.step for each in history]
                assert len(steps) == len(set(steps)), f"{name} was logged twice"
                if "seconds" not in name:
                    metrics[name] = [(each.step, each.value) for each in history]
            record = {
                "status": run.info.status,
                "is a child": "mlflow.parentRunId" in run.data.tags,
                "files": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
                "parameters": sorted(run.data.params),
                "metrics": metrics,
            }
            found.setdefault((experiment.name, run.info.run_name), []).append(record)
    return found


CAPABILITIES_3 = 0x20080522
MAY_WRITE_EVERYTHING = 0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


@contextmanager
def protected(folder: Path) -> Iterator[None]:
    """Take the permission to write from a folder and all in it, and from root that of writing there all the same."""
    paths = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    modes = {path: path.stat().st_mode for path in paths}
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice
    assert libc.capget(header, before) == 0
    less = (ctypes.c_uint32 * 6)(*before)
    less[0] &= ~MAY_WRITE_EVERYTHING
    try:
        for path, mode in modes.items():
            path.chmod(mode & 0o555)
        assert libc.capset(header, less) == 0
        yield
    finally:
        assert libc.capset(header, before) == 0
        for path, mode in modes.items():
            path.chmod(mode)


@dataclass(frozen=True)
class Entered:
    """What an entry point left: its exit status and what it printed."""

    status: int
    out: str
    err: str


def assert_one_sentence(entered: Entered, *words: str) -> None:
    """A person's mistake ends with status 2, one line that holds the words, and no traceback."""
    lines = [line for line in entered.err.splitlines() if line.startswith("convatlas: ")]
    assert entered.status == 2, entered.err
    assert "Traceback" not in entered.err
    assert len(lines) == 1, entered.err
    for word in words:
        assert word in lines[0], lines[0]


def macs_of(net: Any, input_size: Sequence[int]) -> int:
    """Count the multiply-adds of one image: in one pass where that is enough, as it takes most of the time."""
    import torch

    from convatlas.models import costs

    if costs.auxiliary_loss_weights(net) or "hyper" in type(net).__module__:  # weights are made once a batch
        return costs.multiply_adds(net, input_size)[0]
    image = torch.zeros(1, *input_size, device=next(net.parameters()).device)
    return costs._flops(net.eval(), image) // 2
