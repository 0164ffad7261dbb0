"""Proxy trainings, which judge a sampled net: short, on one part of the training split, and tested on the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.search.budget import EVALUATION, TRAINING, macs_of
from convatlas.search.config import Proxy, SgdStep
from convatlas.search.data import SearchData


@dataclass(frozen=True)
class Judged:
    """A net after its proxy training, measured on the held-out part."""

    loss: float  # mean cross-entropy
    accuracy: float  # share of correct answers
    macs: int  # multiply-adds of one image
    spent: int  # multiply-adds of training and test


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
    net = net.to(device).train()
    batches = data.training_batches(proxy.batch_size, seed, image_size=image_size)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=proxy.lr, momentum=proxy.momentum, weight_decay=proxy.weight_decay, nesterov=True
    )
    steps = proxy.epochs * len(batches)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _cosine(proxy.lr, 0.0, step / steps)
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
    loss, correct, images = 0.0, 0, 0
    batches = data.held_out_batches(image_size)
    with torch.inference_mode():
        for batch in (batches[number] for number in range(len(batches))):
            logits, labels = net(batch["images"].to(device)), batch["labels"].to(device)
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            correct += correct_answers(logits, labels)
            images += len(labels)
    mean = loss / images
    return (mean if math.isfinite(mean) else math.inf), correct / images


def correct_answers(logits: Tensor, labels: Tensor) -> int:
    """Count the images whose highest logit is that of their label."""
    return int((logits.argmax(1) == labels).sum())


def sgd(parameters: list[nn.Parameter], config: SgdStep) -> torch.optim.SGD:
    """Make the optimiser of a super-net's weights."""
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def sgd_step(optimizer: torch.optim.Optimizer, loss: Tensor, config: SgdStep, progress: float) -> None:
    """Take a step with the learning rate of `progress`, from 0 to 1; no other parameters get gradients."""
    group = optimizer.param_groups[0]
    group["lr"] = _cosine(config.lr, config.final_lr, progress)
    set_gradients(group["params"], loss)
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(group["params"], config.clip_norm)
    optimizer.step()


def set_gradients(parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
    """Replace the gradients of these parameters, and of no others, by those of `loss`; None where it has none."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))
