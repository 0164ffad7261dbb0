"""CIFAR-10 to 94 %, by the pipeline and by a bare loop: `python benchmarks/cifar10_speed.py --cifar10 FOLDER`.

Net and recipe are those of Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024), called airbench94: a net
of six 3 x 3 convolutions behind a whitening layer that is computed from the images, batches of 1,024, a rate that rises
and falls in straight lines, flips that alternate from epoch to epoch, shifts by two pixels, smoothed labels, an
average of the weights, and a test with flips and shifts. The bare loop has all of it, written for this comparison. The
pipeline trains the same net with what its options offer: flips are drawn, biases have the rate of all weights, borders
are black, the average is exponential, and the test has flips alone. So its accuracy is a result and not a given.

Both ways take turns. Seconds are of training, from the first batch to the last; the pipeline's hold a validation after
every epoch and its checkpoints. `--device cuda` is meant; on the CPU `--quick` shows that every step runs, with a
few random images. It has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pipeline import on_device, random_pixels
from torch import Tensor, nn

from convatlas.core import cli
from convatlas.core.composing import compose_run, hydra_ready
from convatlas.core.config import RunConfig
from convatlas.data.prepare_dataset import prepare_raw
from convatlas.data.prepared import PreparedData
from convatlas.data.sources.cifar import load_cifar10
from convatlas.training.run import train

AIM = 0.94
WHITENED = 24
"""Filters of the first layer: the 12 principal components of 2 x 2 x 3 pixels, and their negatives."""
MEAN_RATE = round(11.5 / (1 + 1 / (1 - 0.85)), 4)
MEAN_DECAY = round(0.0153 / 11.5, 6)
"""The paper states rate and decay, 11.5 and 0.0153, for 1,024 images whose losses are added up, over all the steps that
momentum carries them on. These are the same for the mean of losses, as `torch.optim.SGD` takes them."""


class Found(NamedTuple):
    """What one training gives: seconds, and the share of correct answers on the test images."""

    seconds: float
    accuracy: float


# ---- the net --------------------------------------------------------------------------------------------------------


class FastNet(nn.Module):
    """Whitening, three groups of two convolutions with 64, 256 and 256 channels, and a linear classifier."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, momentum: float = 0.4) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(in_channels, WHITENED, 2)
        self.whiten.weight.requires_grad_(False)
        widths = (WHITENED, 64, 256, 256)
        groups = [layer for pair in pairwise(widths) for layer in group(*pair, momentum)]
        self.features = nn.Sequential(nn.GELU(), *groups, nn.MaxPool2d(3))
        self.classifier = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, classes)` of normalised images `(B, 3, 32, 32)`."""
        logits: Tensor = self.classifier(self.features(self.whiten(images)).flatten(1)) / 9
        return logits

    @torch.no_grad()
    def whiten_like(self, images: Tensor, eps: float = 5e-4) -> None:
        """Set the first layer from normalised images: filters that give their patches a covariance of one."""
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, images.shape[1] * 4).double()
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        filters = (vectors / (values + eps).sqrt()).T.reshape(-1, images.shape[1], 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


def group(before: int, channels: int, momentum: float) -> list[nn.Module]:
    """Return two convolutions with a pooling after the first; they begin by handing on what they get."""
    layers: list[nn.Module] = []
    for number, width in enumerate((before, channels)):
        convolution = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        nn.init.dirac_(convolution.weight[:width])
        norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=momentum)
        norm.weight.requires_grad_(False)
        layers += [convolution, *([nn.MaxPool2d(2)] if number == 0 else []), norm, nn.GELU()]
    return layers


# ---- the pipeline ---------------------------------------------------------------------------------------------------


def by_pipeline(options: argparse.Namespace, folder: Path, seed: int) -> Found:
    """Train through the pipeline and return its seconds and its accuracy with flips."""
    config = composed(options, folder, seed)
    [run] = train(config, strict=True)
    accuracy = json.loads((run / "metrics.json").read_text())["parts"]["flip"]["accuracy"]
    return Found(json.loads((run / "timing.json").read_text())["train_seconds"], accuracy)


def composed(options: argparse.Namespace, folder: Path, seed: int) -> RunConfig:
    """Return the run: what of the recipe the pipeline has options for."""
    on_gpu = options.device == "cuda"
    overrides = [
        *(
            "data=cifar10",
            f"data.prepared={folder / 'prepared'}",
            "model=timm",
            "model._target_=cifar10_speed.fast_net",
        ),
        *("~model.model_name", f"+model.whitening={folder / 'whitening.pt'}"),
        *("recipe=cifar", f"recipe.epochs={options.epochs}", f"recipe.batch_size={options.batch}"),
        *("recipe/schedule=cosine", "recipe/schedule=polynomial"),
        *("recipe.schedule.power=1", f"recipe.schedule.warmup_epochs={0.23 * options.epochs}"),
        *("recipe.schedule.final_fraction=0.07", f"recipe.optimizer.lr={MEAN_RATE}", "recipe.optimizer.momentum=0.85"),
        *("recipe.optimizer.nesterov=true", f"recipe.optimizer.weight_decay={MEAN_DECAY}"),
        "recipe.loss.label_smoothing=0.2",
        *("recipe.augmentation.crop_padding=2", "recipe.ema_decay=0.98", "recipe.test_views=[flip]"),
        *(f"trainer={'gpu' if on_gpu else 'cpu'}", f"trainer.limit_batches={options.limit or 'null'}"),
        *(["trainer.deterministic=false"] if on_gpu else ["trainer.threads=1"]),
        *("tracking=none", "overwrite=true"),
    ]
    with hydra_ready():
        named = {"variant": "speed", "seeds": [seed], "output_dir": str(folder / f"run{seed}")}
        return compose_run(overrides, named)


def fast_net(whitening: str, num_classes: int, in_channels: int) -> FastNet:
    """Build the net, whitened by the images of a file."""
    net = FastNet(num_classes, in_channels)
    net.whiten_like(torch.load(whitening, weights_only=True))
    return net


# ---- the bare loop --------------------------------------------------------------------------------------------------


def by_bare_loop(options: argparse.Namespace, prepared: PreparedData, folder: Path, seed: int) -> Found:
    """Train by the paper's recipe in plain PyTorch, and return seconds and accuracy."""
    torch.manual_seed(seed)
    device = options.device
    images, labels = normalised(prepared, "train", device)
    started = time.perf_counter()
    net = fast_net(str(folder / "whitening.pt"), 10, 3).to(device=device, memory_format=torch.channels_last)
    steps_an_epoch = min(len(images) // options.batch, options.limit or 10**9)
    steps = steps_an_epoch * options.epochs
    biases = [p for name, p in net.named_parameters() if name.endswith("bias") and p.requires_grad]
    others = [p for name, p in net.named_parameters() if not name.endswith("bias") and p.requires_grad]
    groups = [
        {"params": biases, "lr": 64 * MEAN_RATE, "weight_decay": MEAN_DECAY / 64},
        {"params": others, "lr": MEAN_RATE, "weight_decay": MEAN_DECAY},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: triangle(step / steps))
    average = [value.clone() for value in net.state_dict().values()]
    step = 0
    for epoch in range(options.epochs):
        net.train()
        net.whiten.bias.requires_grad_(epoch < 3)
        shown = shifted(images, epoch)
        for chosen in torch.randperm(len(shown), device=device).split(options.batch)[:steps_an_epoch]:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                logits = net(shown[chosen])
            F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.2).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            step += 1
            if step % 5 == 0:
                look_ahead(net, average, 0.95**5 * (step / steps) ** 3)
    look_ahead(net, average, 1.0)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return Found(seconds, accuracy_with_views(net, *normalised(prepared, "test", device)))


def normalised(prepared: PreparedData, split: str, device: str) -> tuple[Tensor, Tensor]:
    """Return a split's images, normalised by the training images, and its labels."""
    images, labels = on_device(prepared.split(split), device)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (prepared.card.mean, prepared.card.std))
    return (images.float().div_(255) - mean) / std, labels


def triangle(done: float) -> float:
    """Rise from 0.2 of the rate to all of it at 0.23 of the training, and fall to 0.07 of it."""
    return 0.2 + 0.8 * done / 0.23 if done < 0.23 else 1 - 0.93 * (done - 0.23) / 0.77


def shifted(images: Tensor, epoch: int) -> Tensor:
    """Shift each image by up to two pixels, and mirror one half in even epochs and the other in odd ones."""
    count, _, height, width = images.shape
    padded = F.pad(images, [2] * 4, mode="reflect").permute(0, 2, 3, 1)
    rows, columns = (
        torch.randint(5, (count, 1), device=images.device) + torch.arange(side, device=images.device)
        for side in (height, width)
    )
    number = torch.arange(count, device=images.device)
    # Which half an image belongs to is drawn by a hash of its number: the same in every epoch.
    mirrored = (number * 2654435761 >> 7) % 2 == epoch % 2
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    return padded[number[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def look_ahead(net: nn.Module, average: list[Tensor], share: float) -> None:
    """Move the average towards the net and set the net to it; a share of 1 takes the average as it is."""
    for mine, slow in zip(net.state_dict().values(), average, strict=True):
        if mine.is_floating_point():
            slow.lerp_(mine, 1 - share)
            mine.copy_(slow)


@torch.inference_mode()
def accuracy_with_views(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of correct answers of six views: straight and mirrored, in place and shifted to both corners."""
    net.eval()
    padded = F.pad(images, [1] * 4, mode="reflect")
    shifts = ((images, 0.5), (padded[..., :-2, :-2], 0.25), (padded[..., 2:, 2:], 0.25))
    right = 0
    for first in range(0, len(images), 2000):
        part = slice(first, first + 2000)
        logits = sum(share * (net(view[part]) + net(view[part].flip(3))) for view, share in shifts)
        assert isinstance(logits, Tensor)
        right += int((logits.argmax(1) == labels[part]).sum())
    return right / len(images)


# ---- both -----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Let both ways take turns, and print each training and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder of cifar-10-batches-py")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--limit", type=int, help="batches of an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two epochs of two batches of 32 random images, once")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.batch, options.limit, options.repeats = 2, 32, 2, 1
    elif options.cifar10 is None:
        parser.error("--cifar10 names the folder with cifar-10-batches-py; without it there is only --quick")
    found: dict[str, list[Found]] = {"bare loop": [], "pipeline": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = composed(options, folder, seed=0)
        raw = load_cifar10(options.cifar10, download=False) if options.cifar10 else random_pixels(400)
        prepare_raw(config.data, raw)
        prepared = PreparedData.open_for(config.data)
        torch.save(normalised(prepared, "train", "cpu")[0][:5000].clone(), folder / "whitening.pt")
        by_bare_loop(options, prepared, folder, seed=10**6)  # libraries choose their kernels
        for seed in range(options.repeats):
            found["bare loop"].append(by_bare_loop(options, prepared, folder, seed))
            found["pipeline"].append(by_pipeline(options, folder, seed))
    data = "CIFAR-10" if options.cifar10 else "random pixels"
    print(f"{data}, {options.epochs} epochs, batch {options.batch}, {options.device}, {options.repeats} trainings each")
    for way, trainings in found.items():
        seconds = statistics.median(training.seconds for training in trainings)
        accuracy = statistics.fmean(training.accuracy for training in trainings)
        verdict = "reaches" if accuracy >= AIM else "does not reach"
        print(f"{way:<10} {seconds:7.2f} s   mean accuracy {accuracy:.4f}, {verdict} {AIM}")


if __name__ == "__main__":
    cli.run(main)
