"""What a GPU does with all this, in eight minutes: `python benchmarks/gpu.py [--cifar10 FOLDER]` writes docs/gpu.md.

The parts run in order of their value, each in a process of its own, and each is saved in benchmarks/gpu.json when it
ends; the page is written from that file. When the minutes are over the part that runs is stopped and the others are
named as not run. `--rehearse` runs all of it on the CPU with tiny sizes, and writes to `--folder` alone. `--page`
writes the page anew from the record.

Without `--cifar10`, the folder that holds cifar-10-batches-py, the parts that need CIFAR-10 are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from convatlas.core.accelerators import peak_flops
from convatlas.core.environment import git_state, processor
from convatlas.models.classification.resnet_cifar import ResNetCifar
from convatlas.models.classification.revnet import revnet_cifar

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RECORD, PAGE = HERE / "gpu.json", ROOT / "docs" / "gpu.md"

ROW = "row: "
"""How the lines begin by which a part tells its rows."""
Row = dict[str, float | int | str | None]
"""One line of the table: `what`, and figures by name."""


class Options(NamedTuple):
    """What every part gets."""

    cifar10: Path | None
    rehearse: bool
    seconds: float
    """What a part may take."""
    folder: Path
    """Where it may write."""

    @property
    def device(self) -> str:
        """The device of the part."""
        return "cpu" if self.rehearse else "cuda"


# ---- the parts ------------------------------------------------------------------------------------------------------


def tests(options: Options) -> Iterator[Row]:
    """Run the tests that need a GPU (`make test-gpu`); a rehearsal counts them."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *(["--collect-only"] if options.rehearse else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=options.seconds)
    last = next(
        (line for line in reversed(done.stdout.splitlines()) if re.search(r"\d+ (passed|failed)|collected", line)), ""
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    yield {"what": "tests with the mark gpu", "note": last.strip(" =")}
    yield from ({"what": line} for line in failed)


WAYS: dict[str, tuple[str, bool, bool]] = {
    "float32": ("32-true", False, False),
    "TF32": ("tf32-true", False, False),
    "bf16": ("bf16-mixed", False, False),
    "bf16, channels last": ("bf16-mixed", True, False),
    "bf16, channels last, compiled": ("bf16-mixed", True, True),
}
"""Precision, channels-last, compiled."""


def steps(options: Options) -> Iterator[Row]:
    """Time training steps of ResNet-18 (224 pixels) and RevNet-38 (32 pixels) on made-up images, with SGD."""
    from torchvision.models import resnet18

    nets: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
        "ResNet-18": (resnet18, 224, 256),
        "RevNet-38": (revnet_cifar, 32, 512),
    }
    if options.rehearse:
        nets = {"ResNet-18": (resnet18, 32, 4), "RevNet-38": (lambda: revnet_cifar(depth=14), 32, 4)}
    each = options.seconds / 20
    for name, (build, side, batch) in nets.items():
        for way, (precision, last, compiled) in WAYS.items():
            if compiled and (name == "RevNet-38" or options.rehearse):
                continue  # compiled, reversible layers would keep what they are there to spare
            net = build().to(options.device)
            how = {"precision": precision, "last": last, "compiled": compiled, "seconds": each}
            figures = timed_steps(net, side, batch, **how)  # type: ignore[arg-type]
            yield {"what": f"{name}, {way}", **figures}


def timed_steps(
    net: nn.Module, side: int, batch: int, *, precision: str, last: bool, compiled: bool, seconds: float
) -> Row:
    """Return images a second, peak memory and MFU of training steps of so many seconds, after ten that do not count."""
    device = next(net.parameters()).device
    macs = _macs(net, side)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32-true"
    layout = torch.channels_last if last else torch.contiguous_format
    images = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=layout)
    labels = torch.arange(batch, device=device) % 10
    net = net.to(memory_format=layout).train()
    if compiled:
        net.compile()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(10 if device.type == "cuda" else 1):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _synchronise(device)
    started, done = time.perf_counter(), 0
    while done < 3 or time.perf_counter() - started < seconds:
        for _ in range(1 if device.type == "cpu" else 10):
            step()
            done += 1
        _synchronise(device)
        if device.type == "cpu":
            break
    rate = done * batch / (time.perf_counter() - started)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    peak = peak_flops(gpu, precision)
    return {
        "images/s": round(rate, 1),
        "peak MB": round(torch.cuda.max_memory_allocated() / 1e6) if gpu else None,
        "MFU %": None if peak is None else round(100 * 6 * macs * rate / peak, 1),
    }


def _macs(net: nn.Module, side: int) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, side, side, device=next(net.parameters()).device))
    return counter.get_total_flops() // 2


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def two_processes(options: Options) -> Iterator[Row]:
    """Train a ResNet-20 in two processes on one GPU by gloo, and by NCCL where there are two; against one process."""
    ways = [("gloo", 1), *([("nccl", 2)] if torch.cuda.device_count() > 1 else [])]
    for backend, gpus in ways:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            torch.multiprocessing.spawn(_replica, (backend, gpus, Path(name), options.rehearse), nprocs=2)
            found = json.loads((Path(name) / "found.json").read_text())
        yield {"what": f"two processes, {backend}, {gpus} GPU{'s' * (gpus > 1)}", **found}


def _replica(rank: int, backend: str, gpus: int, folder: Path, rehearse: bool) -> None:
    """Make ten steps as one of two processes; rank zero makes them alone first, and compares the losses."""
    device = torch.device("cpu") if rehearse else torch.device("cuda", rank % gpus)
    if not rehearse:
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
    size, number = (4, 2) if rehearse else (256, 10)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(size, 3, 32, 32, generator=generator).to(device), (torch.arange(size) % 10).to(device)

    def losses(net: nn.Module, mine: slice) -> list[float]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        found = []
        for _ in range(number):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images[mine]), labels[mine])
            loss.backward()
            optimizer.step()
            total = loss.detach().clone()
            if dist.is_initialized():
                dist.all_reduce(total)
                total /= 2
            found.append(float(total))
        return found

    def build() -> nn.Module:
        torch.manual_seed(0)
        return ResNetCifar(depth=20).to(device).eval()  # without statistics of the batch, halves are the whole

    alone = losses(build(), slice(None)) if rank == 0 else []
    dist.init_process_group(backend, init_method=f"file://{folder.resolve()}/meeting", rank=rank, world_size=2)
    started = time.perf_counter()
    divided = losses(DistributedDataParallel(build()), slice(rank, None, 2))
    seconds = time.perf_counter() - started
    if rank == 0:
        apart = max(abs(a - b) for a, b in zip(alone, divided, strict=True))
        row = {"images/s": round(number * size / seconds, 1), "note": f"losses differ by at most {apart:.1e}"}
        (folder / "found.json").write_text(json.dumps(row))
    dist.destroy_process_group()


def seeds(options: Options) -> Iterator[Row]:
    """Train eight seeds of two small nets one after the other, then side by side, on the digits."""
    nets = {"LeNet-5": ["model=lenet5_modern"], "ResNet-8": ["model=resnet_cifar", "model.depth=8"]}
    if options.rehearse:
        del nets["ResNet-8"]
    counts = [1, 2] if options.rehearse else [1, 4, 8]
    many = list(range(2 if options.rehearse else 8))
    prepared = options.folder / "digits"
    _convatlas("prepare", "data=digits", f"data.prepared={prepared}", f"page={options.folder / 'digits.html'}")
    for name, net in nets.items():
        for at_once in counts:
            folder = options.folder / f"{net[0]}-{at_once}".replace("=", "-")
            started = time.perf_counter()
            _train(
                options,
                [
                    *net,
                    f"data.prepared={prepared}",
                    f"seeds={many}".replace(" ", ""),
                    f"trainer.seeds_at_once={at_once}",
                ],
                folder,
                ["recipe.epochs=1", "trainer.limit_batches=2"] if options.rehearse else ["recipe.epochs=10"],
            )
            seconds = time.perf_counter() - started
            yield {"what": f"{name}, {len(many)} seeds, {at_once} at once", "seconds": round(seconds, 1)}


def airbench(options: Options) -> Iterator[Row]:
    """Train airbench94's net to 94 % by the pipeline and by a bare loop (`benchmarks/cifar10_speed.py`)."""
    command = [sys.executable, str(HERE / "cifar10_speed.py"), "--device", options.device]
    command += ["--quick"] if options.rehearse else ["--cifar10", str(options.cifar10), "--repeats", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=options.seconds)
    found = re.findall(r"^(bare loop|pipeline)\s+([\d.]+) s\s+mean accuracy ([\d.]+)", done.stdout, re.MULTILINE)
    for way, seconds, share in found:
        yield {
            "what": f"airbench94's net, {way}",
            "seconds": float(seconds),
            "accuracy %": round(100 * float(share), 2),
        }


def resnet20(options: Options) -> Iterator[Row]:
    """Train ResNet-20 on CIFAR-10 by the paper's whole recipe, all 50,000 images; the paper's error is 8.75 %."""
    net = ["model=resnet_cifar", "model.depth=20", "recipe=cifar_resnet", "trainer.precision=bf16-mixed"]
    yield _on_cifar10(options, "ResNet-20, 165 epochs", net)


def stochastic_depth(options: Options) -> Iterator[Row]:
    """Train stochastic depth 110 by the paper's recipe for as long as there is time."""
    net = ["model=stochastic_depth_resnet", "recipe=cifar_stochastic_depth", "trainer.precision=bf16-mixed"]
    yield _on_cifar10(options, "stochastic depth 110, 500 epochs", net)


def _on_cifar10(options: Options, what: str, net: list[str]) -> Row:
    """Train on CIFAR-10 and return the test's figures; or, where time ran out, how far it came."""
    prepared = options.folder / "cifar10"
    if not (prepared / "dataset.json").exists():
        _prepare_cifar10(options, prepared)
    tiny = ["recipe.epochs=2", "trainer.limit_batches=2", "recipe.batch_size=16", "model.depth=8"]
    options_ = [*net, "data=cifar10", f"data.prepared={prepared}", "trainer.deterministic=false"]
    folder = options.folder / re.sub(r"\W+", "_", what)
    lines = _train(options, options_, folder, tiny if options.rehearse else [])
    epochs = [re.search(r"epoch (\d+)/(\d+)  (.*)  ([\d.]+) s$", line) for line in lines]
    done = [found for found in epochs if found]
    if not done:
        return {"what": what, "note": "no epoch ended in the time that was left"}
    seconds = sum(float(found[4]) for found in done)
    row: Row = {"what": what, "seconds": round(seconds, 1)}
    run = folder / "seed=0"
    if not (run / "metrics.json").exists():
        return row | {"note": f"stopped after {done[-1][1]} of {done[-1][2]} epochs: {done[-1][3]}"}
    timing, metrics = (json.loads((run / f"{name}.json").read_text()) for name in ("timing", "metrics"))
    return row | {
        "images/s": round(timing["images_per_second"], 1),
        "peak MB": None if timing["peak_memory_bytes"] is None else round(timing["peak_memory_bytes"] / 1e6),
        "MFU %": None if timing["mfu"] is None else round(100 * timing["mfu"], 2),
        "accuracy %": round(100 * metrics["test"]["accuracy"], 2),
    }


def _prepare_cifar10(options: Options, prepared: Path) -> None:
    from cifar10_speed import load_cifar10, random_pixels

    from convatlas.core.composing import compose_run, hydra_ready
    from convatlas.data.prepare_dataset import prepare_raw

    with hydra_ready():
        config = compose_run(["data=cifar10", f"data.prepared={prepared}"], {"output_dir": str(options.folder)})
    rehearsed = options.rehearse or options.cifar10 is None
    raw = random_pixels(400) if rehearsed else load_cifar10(options.cifar10, download=False)  # type: ignore[arg-type]
    prepare_raw(config.data, raw)


def _train(options: Options, overrides: list[str], folder: Path, more: list[str]) -> list[str]:
    """Train by the command line; returns what it printed, also where the time ran out."""
    machine = ["trainer=cpu", "trainer.precision=32-true", "trainer.threads=1"] if options.rehearse else ["trainer=gpu"]
    kept = [each for each in overrides if not (options.rehearse and each.startswith("trainer.precision"))]
    command = [*machine, *kept, *more, "tracking=none", f"output_dir={folder}", "trainer.progress_bar=false"]
    return _convatlas("train", *command, seconds=options.seconds)


def _convatlas(name: str, *arguments: str, seconds: float | None = None) -> list[str]:
    command = [sys.executable, "-m", f"convatlas.{name}", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, _ = process.communicate(timeout=60)
        return out.splitlines()
    if process.returncode:
        raise RuntimeError(out[-2000:])
    return out.splitlines()


class Part(NamedTuple):
    """One part of the programme."""

    run: Callable[[Options], Iterator[Row]]
    most: float
    """Seconds that it may take."""
    least: float
    """Seconds that must be left for it to begin."""
    needs_cifar10: bool = False


PARTS: dict[str, Part] = {
    "tests": Part(tests, 130, 20),
    "steps": Part(steps, 80, 20),
    "two_processes": Part(two_processes, 30, 15),
    "seeds": Part(seeds, 80, 30),
    "airbench": Part(airbench, 60, 30, needs_cifar10=True),
    "resnet20": Part(resnet20, 300, 60, needs_cifar10=True),
    "stochastic_depth": Part(stochastic_depth, 300, 30, needs_cifar10=True),
}


# ---- the programme --------------------------------------------------------------------------------------------------


def main() -> None:
    """Run the parts, keep the record, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder of cifar-10-batches-py")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which it stops by itself")
    parser.add_argument("--rehearse", action="store_true", help="all parts on the CPU with tiny sizes")
    parser.add_argument("--folder", type=Path, help="where a rehearsal writes record and page")
    parser.add_argument("--page", action="store_true", help="write docs/gpu.md from the record and stop")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.page:
        PAGE.write_text(page(json.loads(RECORD.read_text()) if RECORD.exists() else None))
        return
    if arguments.part:
        options = Options(arguments.cifar10, arguments.rehearse, arguments.seconds, arguments.folder)
        for row in PARTS[arguments.part].run(options):
            print(ROW + json.dumps(row), flush=True)
        return
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --rehearse runs all parts on the CPU with tiny sizes")
    if arguments.rehearse and arguments.folder is None:
        parser.error("--rehearse writes nothing into the repository; name a --folder for its record and page")
    places = (RECORD, PAGE) if not arguments.rehearse else (arguments.folder / "gpu.json", arguments.folder / "gpu.md")
    with tempfile.TemporaryDirectory() as work:
        found = run(arguments, Path(work), *places)
    print(table(found))


def run(arguments: argparse.Namespace, work: Path, record: Path, written: Path) -> dict[str, Any]:
    """Run the parts one after the other until the minutes are over; record and page are whole after each."""
    deadline = time.monotonic() + 60 * arguments.minutes
    found: dict[str, Any] = {"machine": machine(arguments.rehearse), "parts": {}}
    for name, part in PARTS.items():
        left = deadline - time.monotonic()
        if part.needs_cifar10 and arguments.cifar10 is None and not arguments.rehearse:
            outcome: dict[str, Any] = {"not_run": "needs --cifar10"}
        elif left < part.least:
            outcome = {"not_run": "no time was left"}
        else:
            outcome = one(name, min(left, part.most), arguments, work)
        found["parts"][name] = outcome
        _write(record, json.dumps(found, indent=1) + "\n")
        _write(written, page(found))
        print(f"{name}: {outcome.get('not_run') or outcome.get('failed') or 'done'}", flush=True)
    return found


def one(name: str, seconds: float, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run one part in a process of its own and return its rows, or why there are none."""
    command = [
        sys.executable,
        __file__,
        "--part",
        name,
        "--seconds",
        str(max(5.0, seconds - 10)),
        "--folder",
        str(work),
    ]
    command += ["--rehearse"] if arguments.rehearse else []
    command += ["--cifar10", str(arguments.cifar10)] if arguments.cifar10 else []
    started = time.monotonic()
    with (work / f"{name}.txt").open("w+") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = None
            _stop(process)
        printed.seek(0)
        lines = printed.read().splitlines()
    rows = [json.loads(line.removeprefix(ROW)) for line in lines if line.startswith(ROW)]
    found: dict[str, Any] = {"seconds": round(time.monotonic() - started, 1), "rows": rows}
    if status is None:
        found["failed"] = f"it had not ended after {seconds:.0f} s"
    elif status:
        found["failed"] = lines[-1][:300] if lines else f"status {status}"
    return found


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def machine(rehearse: bool) -> dict[str, Any]:
    """Name what the parts run on."""
    return {
        "gpu": None if rehearse else torch.cuda.get_device_name(),
        "gpus": 0 if rehearse else torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "processor": processor(),
        "cores": os.cpu_count(),
        "commit": git_state()["commit"],
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "rehearsal": rehearse,
    }


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)


# ---- the page -------------------------------------------------------------------------------------------------------

COLUMNS = ("images/s", "seconds", "peak MB", "MFU %", "accuracy %", "note")
HOW = """
`make test-gpu` runs the tests that need a GPU (about two minutes); `python benchmarks/gpu.py --cifar10 FOLDER` runs
them and the measurements below, stops by itself after eight minutes, and writes this page from its record,
`benchmarks/gpu.json`. `--rehearse` runs every part on the CPU with tiny sizes. Every part: {parts}.
"""
NOTHING = """# On a GPU

**Nothing of this project has run on a GPU yet.** What was done without one: a step of training (forward pass, loss,
backward pass, clipping, optimiser, averaged weights) of every family's small net runs on torch's fake CUDA tensors
under bfloat16 and float16 autocast, where tensors on two devices, operations that CUDA's autocast bans and places where
the CPU waits for the GPU are errors (`tests/training/test_fake_gpu.py`). That says nothing of speed, of the values that
a GPU computes, of CUDA graphs, or of NCCL. The minutes on a GPU are rehearsed on the CPU by a test.
"""


def page(found: Mapping[str, Any] | None) -> str:
    """Return docs/gpu.md: what the record says, or that there is none."""
    how = HOW.format(parts=", ".join(f"`{name}`" for name in PARTS))
    if found is None:
        return NOTHING + how
    here = found["machine"]
    where = (
        "a rehearsal on the CPU: its figures mean nothing" if here["rehearsal"] else f"{here['gpus']} x {here['gpu']}"
    )
    return (
        f"# On a GPU\n\nMeasured on {here['date']}: {where}; torch {here['torch']}, CUDA {here['cuda']}, "
        f"{here['processor']} with {here['cores']} cores, commit {here['commit']}. Once each, without a spread.\n"
        f"{how}\n{table(found)}\n"
    )


def table(found: Mapping[str, Any]) -> str:
    """Return the rows of all parts as a Markdown table, and the parts that did not run or failed below it."""
    rows = [row for part in found["parts"].values() for row in part.get("rows", [])]
    columns = [column for column in COLUMNS if any(row.get(column) is not None for row in rows)]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {row['what']} | " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    lacking = [
        f"- `{name}`: {'failed: ' + part['failed'] if 'failed' in part else 'not run: ' + part['not_run']}"
        for name, part in found["parts"].items()
        if "failed" in part or "not_run" in part
    ]
    return "\n".join([*lines, *(["", "What did not run, or not to its end:", "", *lacking] if lacking else [])])


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value).replace("|", "/")


if __name__ == "__main__":
    main()
