"""The benchmarks, one after the other: `python benchmarks/run_all.py [NAME ...]` writes benchmarks/results.md.

Each is a program of its own beside this file that prints what it measured; this one runs them, names the machine, and
keeps what they printed. Ratios are of one run on one machine; seconds of two runs are not to be compared. Two quiet
cores take about a quarter of an hour. With names, the sections of the others stay as they are; some are run by name
alone. `--quick` shows in a few minutes that each works, prints its output, and writes nothing.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from convatlas.core.environment import processor

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.md"

BENCHMARKS = {
    "start": ["start.py"],
    "pipeline": ["pipeline.py"],
    "loading": ["loading.py"],
    "evaluation": ["evaluation.py"],
    "ddp": ["ddp.py"],
    "repro": ["repro.py"],
    "reversible": ["reversible.py", "--units", "3", "9", "--repeats", "3", "--plot", os.devnull],
    "drop_paths": ["drop_paths.py", "--steps", "10", "--repeats", "2", "--only", "ResNet"],
}
BY_NAME = {
    "hypernetworks": ["hypernetworks.py"],
    "detectors": ["detectors.py"],
    "net_latencies": ["net_latencies.py"],
}
ON_A_GPU = {
    "pipeline_gpu": ["pipeline.py", "--device", "cuda", "--batches", "300", "--images", "60000"],
    "reversible_gpu": ["reversible.py", "--device", "cuda", "--plot", os.devnull],
    "cifar10_speed": ["cifar10_speed.py", "--device", "cuda", "--cifar10", "data/raw/cifar10"],
}


def main() -> None:
    """Run the named benchmarks, or all that this machine can run, and write what they printed."""
    usual = BENCHMARKS | (ON_A_GPU if torch.cuda.is_available() else {})
    known = usual | BY_NAME
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: {', '.join(usual)}")
    parser.add_argument("--quick", action="store_true", help="see that each works")
    options = parser.parse_args()
    names = options.names or list(usual)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no benchmark {unknown[0]} here; choose of {', '.join(known)}")
    sections = read(RESULTS.read_text()) if RESULTS.exists() else {}
    failed = []
    for name in names:
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        command = [
            sys.executable,
            str(HERE / known[name][0]),
            *known[name][1:],
            *(["--quick"] if options.quick else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            failed.append(name)
            print(done.stdout + done.stderr, file=sys.stderr)
            continue
        if options.quick:
            print(done.stdout)
            continue
        sections[name] = section(known[name], done.stdout, time.monotonic() - start)
        RESULTS.write_text(page(sections))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; their sections are as they were")


def section(command: list[str], printed: str, seconds: float) -> str:
    """Return what stands below a benchmark's name."""
    about = summary(HERE / command[0])
    when = f"{datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.0f} min, on {machine()}"
    return f"{about}\n\n`python benchmarks/{' '.join(command)}`; {when}.\n\n```\n{printed.strip()}\n```\n"


def summary(file: Path) -> str:
    """Return the first sentence of a program's docstring, without the command."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return re.split(r": `|\.\s|:\n", text)[0].rstrip(".:") + "."


def machine() -> str:
    """Name CPU, cores, GPU and versions."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor()}, {os.cpu_count()} cores{gpu}; Python {platform.python_version()}, torch {torch.__version__}"


def page(sections: dict[str, str]) -> str:
    """Return the page, its sections in the order of the programs above."""
    order = [name for name in BENCHMARKS | BY_NAME | ON_A_GPU if name in sections]
    head = (
        "# Benchmarks\n\nWritten by `python benchmarks/run_all.py`. A ratio compares two ways that took turns in one "
        "run; seconds of different runs and machines do not compare.\n"
    )
    return head + "".join(f"\n## {name}\n\n{sections[name]}" for name in order)


def read(text: str) -> dict[str, str]:
    """Return the sections of an earlier page."""
    parts = re.split(r"^## (\w+)\n\n", text, flags=re.MULTILINE)[1:]
    return {name: body.rstrip("\n") + "\n" for name, body in zip(parts[::2], parts[1::2], strict=True)}


if __name__ == "__main__":
    main()
