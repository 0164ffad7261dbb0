"""How good a sampled net is: a short training on one part of the training split, then a test on the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.search.budget import EVALUATION, TRAINING, macs_of
from convatlas.search.config import Proxy, SgdStep
from convatlas.search.data import SearchData

__all__ = ["Judged", "cosine", "evaluate", "proxy_cost", "train_proxy"]


@dataclass(frozen=True)
class Judged:
    """A net after its proxy training, measured on the held-out part.

    Attributes:
        loss: mean cross-entropy.
        accuracy: share of right answers.
        macs: multiply-adds of one image.
        spent: multiply-adds of training and test.
    """

    loss: float
    accuracy: float
    macs: int
    spent: int


def proxy_cost(macs: int, data: SearchData, proxy: Proxy) -> int:
    """Return the multiply-adds of a proxy training and its test for a net of `macs`."""
    batches = data.training_batches(proxy.batch_size, 0)
    trained = proxy.epochs * len(batches) * batches.batch_size
    return macs * (TRAINING * trained + EVALUATION * len(data.held_out))


def train_proxy(
    net: nn.Module, data: SearchData, proxy: Proxy, *, seed: int, device: torch.device, image_size: int | None = None
) -> Judged:
    """Train a net for a few epochs and test it; the same seed gives the same bits."""
    macs = macs_of(net, data.one_image(image_size))
    net = net.to(device)
    batches = data.training_batches(proxy.batch_size, seed, image_size=image_size)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=proxy.lr, momentum=proxy.momentum, weight_decay=proxy.weight_decay, nesterov=True
    )
    steps = proxy.epochs * len(batches)
    net.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = cosine(proxy.lr, 0.0, step / steps)
        batch = batches[divmod(step, len(batches))]
        loss = F.cross_entropy(net(batch["images"].to(device)), batch["labels"].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loss_value, accuracy = evaluate(net, data, device, image_size)
    return Judged(loss_value, accuracy, macs, proxy_cost(macs, data, proxy))


def evaluate(
    net: nn.Module, data: SearchData, device: torch.device, image_size: int | None = None
) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy on the held-out part; an infinite loss where the net has diverged."""
    net.eval()
    loss, right, images = 0.0, 0, 0
    with torch.inference_mode():
        for batch in (data.held_out_batches(image_size)[n] for n in range(len(data.held_out_batches(image_size)))):
            logits, labels = net(batch["images"].to(device)), batch["labels"].to(device)
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            right += right_answers(logits, labels)
            images += len(labels)
    mean = loss / images
    return (mean if math.isfinite(mean) else math.inf), right / images


def right_answers(logits: Tensor, labels: Tensor) -> int:
    """Count the images whose highest logit is that of their label."""
    return int((logits.argmax(1) == labels).sum())


def cosine(first: float, last: float, progress: float) -> float:
    """Return a learning rate that falls from `first` to `last` as half a cosine, at `progress` from 0 to 1."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def sgd(parameters: list[nn.Parameter], config: SgdStep) -> torch.optim.SGD:
    """Make the optimiser of a super-net's weights."""
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
