"""What generating weights costs a training step: `python benchmarks/hypernetworks.py`.

Each net with generated weights is timed in turn with the same net with weights of its own: forward pass, loss terms and
backward pass on one thread, in CPU seconds. Static kernels are made once a step, so that their share falls
with the batch; a dynamic hypernetwork runs at every time step of every image.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from convatlas.models.classification.hyper_recurrent import LSTM, RNN, HyperLSTM, HyperRNN
from convatlas.models.classification.hyper_wide_resnet import HyperWideResNet
from convatlas.models.interfaces import AddsLossTerms


def step_seconds(net: nn.Module, batch: int, in_channels: int) -> float:
    """Return the CPU seconds of one forward and backward pass on images of 32 x 32 pixels."""
    images, labels = torch.rand(batch, in_channels, 32, 32), torch.zeros(batch, dtype=torch.int64)
    net.zero_grad()
    start = time.process_time()
    loss = F.cross_entropy(net(images), labels)
    if isinstance(net, AddsLossTerms):
        loss = loss + sum(net.loss_terms().values())
    loss.backward()
    return time.process_time() - start


def compare(title: str, hyper: nn.Module, plain: nn.Module, *, batch: int, in_channels: int, repeats: int) -> None:
    """Print the medians and the median of the ratios, after one step of each that is not counted."""
    pairs = [(step_seconds(hyper, batch, in_channels), step_seconds(plain, batch, in_channels)) for _ in range(repeats)]
    own, other = (statistics.median(pair[i] for pair in pairs[1:]) for i in (0, 1))
    ratio = statistics.median(a / b for a, b in pairs[1:])
    print(f"{title:<26} batch {batch:>3}   hyper {own:7.4f} s   plain {other:7.4f} s   ratio {ratio:4.2f}")


def main() -> None:
    """Compare the static nets at three batches and the dynamic ones at one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batches of 2, two steps")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    for batch in (2,) if quick else (8, 32, 128):
        repeats = 2 if quick else 6
        compare(
            "WRN-40-1",
            HyperWideResNet(),
            HyperWideResNet(generated=False),
            batch=batch,
            in_channels=3,
            repeats=repeats,
        )
    for title, hyper, plain in (("RNN, 32 rows", HyperRNN, RNN), ("LSTM, 32 rows", HyperLSTM, LSTM)):
        compare(title, hyper(), plain(), batch=2 if quick else 32, in_channels=1, repeats=2 if quick else 21)


if __name__ == "__main__":
    main()
