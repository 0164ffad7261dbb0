"""The machine and the code behind a run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from convatlas.core.config import RunConfig
from convatlas.core.passwords import without_password
from convatlas.core.processes import uses_gpu
from convatlas.core.source_code import PROJECT, SOURCE

__all__ = ["environment", "git_state", "processor"]

PACKAGES = ("torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "hydra-core", "mlflow", "dvc", "numpy")

WRITTEN_BY_PIPELINE = (":!dvc.lock", ":!params.yaml", ":!stages.yaml", ":!metrics")  # in git's notation: all but these


def environment(config: RunConfig) -> dict[str, Any]:
    """Describe the machine and the code, without names of people or paths."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor_cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if uses_gpu(config.trainer.accelerator) else None,
        "threads": config.trainer.threads,
        "workers": config.trainer.workers,
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "command": without_password(" ".join(["python -m convatlas.train", *sys.argv[1:]])),
        **git_state(),
    }


def processor() -> str:
    """Return the model of the CPU as the system names it; kernels are chosen by it, and they decide the last bits."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def git_state() -> dict[str, Any]:
    """Return the commit of the code, and whether its tree differs from it; null where there is no git.

    New files under `src/` and `conf/` count as a difference: the commit alone could not build what they hold.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *WRITTEN_BY_PIPELINE)
        new = _git("ls-files", "--others", "--exclude-standard", "--", "src", "conf")
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed or new)}


def _git(*words: str) -> str:
    folder = PROJECT if SOURCE.name == "src" else Path.cwd()  # installed as a package, the code has no repository
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
