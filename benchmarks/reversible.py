"""What reversible layers save in memory and cost in time: `python benchmarks/reversible.py`.

A RevNet for 32 x 32 images with 3, 9 and 27 units a stage, trained for one step in four ways: plain autograd, every
unit in `torch.utils.checkpoint`, reversible, and with memcnn's wrapper around the same units if it can be imported
(`pip install memcnn==1.5.2`; it is no dependency). Prints the bytes that autograd saves, the peak memory of one step in
a process of its own (resident on the CPU, allocated on a GPU; less the gradients of the parameters), and the time
of a step, the ways taken in turn.
Aims: saved bytes that do not grow with depth, and at most 1.5 times plain autograd's time. On the CPU a forward
pass is more than a third of a step, so that computing it twice costs more than the theory's 4/3; the bound that follows
from plain autograd's own times is printed beside the ratio.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convatlas.models.classification.revnet import RevNet, Stage, revnet_cifar
from convatlas.models.costs import activation_bytes, on_meta_device
from convatlas.models.layers.reversible import AdditiveBlock

WAYS = ("plain", "checkpoint", "reversible", "memcnn")


# ---- four ways of training the same net -----------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """The units of a stage, each of which stores its input."""

    def __init__(self, units: nn.Module) -> None:
        super().__init__()
        self.units = units

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Call the units one after the other."""
        for unit in self.units.children():
            x1, x2 = checkpoint(unit, x1, x2, use_reentrant=False)
        return x1, x2


class Memcnn(nn.Module):
    """The units of a stage in memcnn's wrapper."""

    def __init__(self, units: nn.Module) -> None:
        super().__init__()
        import memcnn

        self.wrapped = nn.Sequential(
            *(
                memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(unit.f.branch, unit.g.branch))
                for unit in units.children()
                if isinstance(unit, AdditiveBlock)
            )
        )

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Join the halves, as memcnn wants them, and split them again."""
        y1, y2 = self.wrapped(torch.cat([x1, x2], 1)).chunk(2, 1)
        return y1, y2


def build(way: str, units: int) -> RevNet:
    """Build the net with the weights of seed 0."""
    torch.manual_seed(0)
    net = revnet_cifar(depth=12 * units + 2, memory_saving=way == "reversible")
    for stage in net.stages:
        assert isinstance(stage, Stage)
        if way == "checkpoint":
            stage.units = Checkpointed(stage.units)  # type: ignore[assignment]
        elif way == "memcnn":
            stage.units = Memcnn(stage.units)  # type: ignore[assignment]
    return net.train()


def step(net: nn.Module, images: Tensor) -> tuple[float, float, float]:
    """Train one step without an update; return wall and CPU seconds, and the forward pass's share."""
    synchronise = torch.cuda.synchronize if images.is_cuda else lambda: None
    labels = torch.arange(len(images), device=images.device) % 10
    net.zero_grad(set_to_none=True)
    synchronise()
    wall, processor = time.perf_counter(), time.process_time()
    loss = F.cross_entropy(net(images), labels)
    synchronise()
    middle = time.process_time() if not images.is_cuda else time.perf_counter()
    forward = middle - (processor if not images.is_cuda else wall)
    loss.backward()
    synchronise()
    whole = (time.perf_counter() - wall, time.process_time() - processor)
    return *whole, forward / (whole[0] if images.is_cuda else whole[1])


# ---- memory ---------------------------------------------------------------------------------------------------------


def resident(field: str) -> int:
    """Return a size of this process in bytes: VmRSS now, VmHWM at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_bytes(way: str, units: int, batch: int, device: str) -> int:
    """Measure what one step takes beside the net and its gradients; to be called in a fresh process."""
    net = build(way, units).to(device)
    gradients = sum(p.numel() * p.element_size() for p in net.parameters())
    step(net, torch.randn(2, 3, 32, 32, device=device))  # libraries load their kernels
    net.zero_grad(set_to_none=True)
    images = torch.randn(batch, 3, 32, 32, device=device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(net, images)
        return torch.cuda.max_memory_allocated() - before - gradients
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = resident("VmRSS")
    step(net, images)
    return resident("VmHWM") - before - gradients


def measured_apart(arguments: argparse.Namespace, way: str, units: int) -> int:
    """Measure the peak in a process of its own."""
    options = ["--batch", str(arguments.batch), "--device", arguments.device]
    command = [sys.executable, __file__, *options, "--measure", way, str(units)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return int(json.loads(done.stdout.splitlines()[-1]))


def print_memory(arguments: argparse.Namespace, ways: list[str]) -> dict[str, list[float]]:
    """Print saved bytes and peaks; return the peaks in megabytes by way."""
    print(
        f"memory of one step of {arguments.batch} images in MB: saved by autograd, peak measured on {arguments.device}"
    )
    print(f"{'units':<8}" + "".join(f"{way:>24}" for way in ways))
    peaks: dict[str, list[float]] = {way: [] for way in ways}
    for units in arguments.units:
        cells = []
        for way in ways:
            peaks[way].append(measured_apart(arguments, way, units) / 1e6)
            cells.append(f"{saved(way, units, arguments.batch)} saved {peaks[way][-1]:7.1f}")
        print(f"{units:<8}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    return peaks


def saved(way: str, units: int, batch: int) -> str:
    """Count what autograd saves; memcnn empties tensors that it saved, which nothing can count."""
    if way == "memcnn":
        return "-"
    net = on_meta_device(lambda: build(way, units))
    return f"{activation_bytes(net, torch.zeros(batch, 3, 32, 32, device='meta')) / 1e6:.1f}"


def plot(peaks: dict[str, list[float]], arguments: argparse.Namespace, title: str) -> None:
    """Draw the peaks over the number of units."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for way, values in peaks.items():
        axes.plot(arguments.units, values, marker="o", label=way)
    axes.set(xlabel="units a stage", ylabel="peak memory of a step, MB", xticks=arguments.units, title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    arguments.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.plot, dpi=150)
    print(f"written: {arguments.plot}")


# ---- time -----------------------------------------------------------------------------------------------------------


def print_times(arguments: argparse.Namespace, ways: list[str]) -> None:
    """Print the median seconds of a step, and the median of the ratios to plain autograd's step beside it."""
    images = torch.randn(arguments.batch, 3, 32, 32, device=arguments.device)
    print(f"time of one step of {arguments.batch} images, median of {arguments.repeats}, wall / CPU")
    for units in arguments.units:
        nets = {way: build(way, units).to(arguments.device) for way in ways}
        times: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
        for repeat in range(arguments.repeats + 1):
            for way, net in nets.items():
                measured = step(net, images)
                if repeat > 0:
                    times[way].append(measured)
        bound = 1 + statistics.median(forward for _, _, forward in times["plain"])
        print(f"{units} units a stage; a second forward pass alone would make {bound:.2f} times plain autograd")
        for way in ways:
            wall, processor = (statistics.median(t[i] for t in times[way]) for i in (0, 1))
            ratios = [
                statistics.median(t[i] / p[i] for t, p in zip(times[way], times["plain"], strict=True)) for i in (0, 1)
            ]
            print(f"  {way:<12}{wall:7.3f} s {processor:7.3f} s   ratio {ratios[0]:4.2f} {ratios[1]:4.2f}", flush=True)


def main() -> None:
    """Measure memory, then time, and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each way")
    parser.add_argument("--units", type=int, nargs="+", default=[3, 9, 27], help="units a stage")
    parser.add_argument("--quick", action="store_true", help="3 units a stage, batches of 2, one step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/reversible_memory.png"), help="where to draw")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "UNITS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.units, arguments.batch, arguments.repeats = [3], 2, 1
    torch.set_num_threads(1)
    if arguments.measure:
        way, units = arguments.measure
        print(json.dumps(peak_bytes(way, int(units), arguments.batch, arguments.device)))
        return
    has_memcnn = importlib.util.find_spec("memcnn") is not None
    ways = [way for way in WAYS if way != "memcnn" or has_memcnn]
    if not has_memcnn:
        print("memcnn is not installed and left out; `pip install memcnn==1.5.2` adds it")
    peaks = print_memory(arguments, ways)
    plot(peaks, arguments, f"RevNet, {arguments.batch} images of 32 x 32 pixels, {arguments.device}")
    print_times(arguments, ways)


if __name__ == "__main__":
    main()
