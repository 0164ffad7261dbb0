"""How fast detectors are on one CPU core: `python benchmarks/detectors.py`.

Times whole detectors, from the image to the boxes, one image at a time at 320 pixels and without trained weights, in
turn in one process; a figure is the median over `--repeats` rounds. Torchvision's two detectors for CPUs stand
beside them. All detectors leave out boxes below the same score, because untrained detectors would otherwise be timed
by how many unsure boxes they suppress; `backbone` is the time without heads and suppression. The lecture gives
ThunderNet 24 frames a second on a phone (24.1 in the paper, SNet49 on a Snapdragon 845, one thread); the last lines say
whether ThunderNet-SNet49 is faster than that here. Other work on the machine slows the wall clock down; CPU
time, printed beside it, much less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn, ssdlite320_mobilenet_v3_large

from convatlas.models.costs import count_parameters, measure_costs
from convatlas.models.detection.ssdlite import (
    mnasnet_ssdlite,
    mobilenet_v1_ssdlite,
    mobilenet_v2_ssdlite,
    mobilenet_v3_ssdlite,
)
from convatlas.models.detection.thundernet import thundernet

SIZE = 320
MIN_SCORE = 0.05
FRAMES_OF_THE_LECTURE = 24
THE_FASTEST_THUNDERNET = "ThunderNet, SNet49"


def torchvision_ssdlite() -> nn.Module:
    """Torchvision's SSDLite, for 91 classes."""
    return ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)


def torchvision_faster_rcnn() -> nn.Module:
    """Torchvision's Faster R-CNN for 320 pixels, for 91 classes; it keeps 150 proposals."""
    return fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)


CASES: dict[str, Callable[[], nn.Module]] = {
    "torchvision ssdlite320_mobilenet_v3_large": torchvision_ssdlite,
    "torchvision fasterrcnn_mobilenet_v3_large_320_fpn": torchvision_faster_rcnn,
    THE_FASTEST_THUNDERNET: thundernet,
    "ThunderNet, SNet146": lambda: thundernet(backbone="snet146"),
    "ThunderNet, SNet535": lambda: thundernet(backbone="snet535"),
    "SSDLite, MobileNet": mobilenet_v1_ssdlite,
    "SSDLite, MobileNetV2": mobilenet_v2_ssdlite,
    "SSDLite, MnasNet-A1": mnasnet_ssdlite,
    "SSDLite, MobileNetV3-Large": mobilenet_v3_ssdlite,
    "SSDLite, MobileNetV3-Small": lambda: mobilenet_v3_ssdlite(variant="small"),
}


class Measured(NamedTuple):
    """Seconds of one image: of the whole detector, wall-clock and CPU time, and of its maps."""

    wall: float
    processor: float
    backbone: float


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a detector for evaluation that leaves out boxes below the common score."""
    torch.manual_seed(0)
    net = build().eval()
    part = net.get_submodule("roi_heads") if hasattr(net, "roi_heads") else net
    part.score_thresh = MIN_SCORE  # type: ignore[assignment]
    return net


def timed(net: nn.Module, image: torch.Tensor) -> Measured:
    """Time one image."""
    start, processor = time.perf_counter(), time.process_time()
    net([image])
    wall, processor = time.perf_counter() - start, time.process_time() - processor
    start = time.perf_counter()
    net.get_submodule("backbone")(image[None])
    return Measured(wall, processor, time.perf_counter() - start)


def main() -> None:
    """Print a line for each detector, and the comparison with the lecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--only", default="", help="detectors whose name contains this")
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 1
    torch.set_num_threads(options.threads)
    nets = {name: built(build) for name, build in CASES.items() if options.only.lower() in name.lower()}
    if not nets:
        parser.error(f"--only {options.only}: no such detector; there are {', '.join(CASES)}")
    image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found: dict[str, list[Measured]] = {name: [] for name in nets}
    with torch.inference_mode():
        for repeat in range(options.repeats + 3):
            for name, net in nets.items():
                measured = timed(net, image)
                if repeat >= 3:
                    found[name].append(measured)
    speeds = {}
    print(f"{'':<51}{'images/s':>9} {'by processor':>13} {'ms':>7} {'backbone':>9} {'MACs':>8} {'parameters':>11}")
    for name, net in nets.items():
        wall, processor, backbone = (statistics.median(column) for column in zip(*found[name], strict=True))
        speeds[name] = {"the clock": 1 / wall, "processor time": 1 / processor}
        macs = measure_costs(net, (3, SIZE, SIZE)).macs / 1e6
        print(
            f"{name:<51}{1 / wall:9.1f} {1 / processor:13.1f} {wall * 1e3:7.1f} {backbone * 1e3:6.1f} ms "
            f"{macs:6.0f} M {count_parameters(net) / 1e6:9.2f} M"
        )
    for measure, frames in speeds.get(THE_FASTEST_THUNDERNET, {}).items():
        verdict = "faster" if frames > FRAMES_OF_THE_LECTURE else "not faster"
        print(
            f"{THE_FASTEST_THUNDERNET} is {verdict} by {measure} than the lecture's {FRAMES_OF_THE_LECTURE} frames a "
            f"second: {frames:.1f}, with {options.threads} thread(s)."
        )


if __name__ == "__main__":
    main()
