"""Differentiable architecture search over a super-net whose layers mix all candidates.

Wu et al., "FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural Architecture Search" (CVPR 2019),
section 3. The output of a layer is the sum of its candidates' outputs, weighted by m = softmax((theta + g) / tau) with
Gumbel noise g (equation 6). Weights and theta are trained in turns, each on its own part of the data.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.search.budget import INPUT_GRADIENTS, TRAINING, macs_of
from convatlas.search.config import FBNetDnas
from convatlas.search.judging import cosine, right_answers, sgd
from convatlas.search.latency import LatencyTable
from convatlas.search.spaces import Decisions, FBNetSpace, Layer
from convatlas.search.strategy import Context, Row, Strategy, seeded

__all__ = ["DnasSearch", "MixedLayer", "SuperNet", "latency_of", "multiplicative_loss", "without_running_statistics"]

Mixture = list[Tensor]
"""For every layer the weights of its candidates, `(candidates,)`, which sum to 1."""

WEIGHTS, ARCHITECTURE, SAMPLES = 1, 2, 3  # streams of random numbers


class MixedLayer(nn.Module):
    """All candidates of a layer side by side; `(B, in, H, W) -> (B, out, H/stride, W/stride)`."""

    def __init__(self, layer: Layer, *, always_expand: bool) -> None:
        super().__init__()
        self.candidates = nn.ModuleList(layer.block(name, always_expand=always_expand) for name in layer.candidates)

    def forward(self, x: Tensor, mixture: Tensor) -> Tensor:
        """Sum the candidates' outputs, weighted by `mixture: (candidates,)`."""
        outputs = [weight * candidate(x) for weight, candidate in zip(mixture, self.candidates, strict=True)]
        return torch.stack(outputs).sum(0)


class SuperNet(nn.Module):
    """The macro-architecture with a mixed layer in every searched place.

    Batch norms always use the statistics of the batch and keep none: what a mixture leaves there would fit no other.

    Args:
        space: layers and candidates.
        num_classes: classes.
        in_channels: channels of the images.

    Attributes:
        thetas: for every layer the logits of its candidates; 0 at the beginning.
    """

    def __init__(self, space: FBNetSpace, num_classes: int, in_channels: int) -> None:
        super().__init__()
        config = space.config
        self.stem = ConvNormAct(in_channels, config.stem_channels, 3, stride=config.stem_stride)
        self.layers = nn.ModuleList(MixedLayer(layer, always_expand=config.always_expand) for layer in space.layers)
        self.head = ConvNormAct(config.stages[-1].channels, config.head_channels)
        self.classifier = nn.Linear(config.head_channels, num_classes)
        self.thetas = nn.ParameterList(nn.Parameter(torch.zeros(len(layer.candidates))) for layer in space.layers)
        without_running_statistics(self)

    def weights(self) -> list[nn.Parameter]:
        """Return all parameters but the thetas."""
        own = {id(theta) for theta in self.thetas}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def draw(self, temperature: float) -> Mixture:
        """Draw a mixture from the Gumbel softmax, with torch's own generator; gradients flow to the thetas."""
        return [F.gumbel_softmax(theta, tau=temperature) for theta in self.thetas]

    def probabilities(self) -> list[Tensor]:
        """Return for every layer the probability of each candidate, `(candidates,)`."""
        return [theta.detach().softmax(0) for theta in self.thetas]

    def entropy(self) -> float:
        """Return the mean entropy of the layers that have a choice, as a fraction of that of an even choice."""
        shares = [
            float(-(p * p.clamp_min(1e-30).log()).sum()) / math.log(len(p)) for p in self.probabilities() if len(p) > 1
        ]
        return sum(shares) / max(1, len(shares))

    def forward(self, images: Tensor, mixture: Mixture) -> Tensor:
        """`(B, C, H, W) -> (B, num_classes)` logits for one mixture."""
        x = self.stem(images)
        for layer, weights in zip(self.layers, mixture, strict=True):
            x = layer(x, weights)
        return self.classifier(self.head(x).mean((2, 3)))


def without_running_statistics(net: nn.Module) -> None:
    """Let every batch norm normalise with its batch, in evaluation too, and remember nothing."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def latency_of(mixture: Mixture, table: LatencyTable, space: FBNetSpace) -> Tensor:
    """Return the latency of a mixture in microseconds: the sum of the operators', weighted (equation 8), a scalar."""
    layers = [(m * table.of_layer(space, n).to(m)).sum() for n, m in enumerate(mixture)]
    return torch.stack(layers).sum() + table.fixed


def multiplicative_loss(cross_entropy: Tensor, latency: Tensor, alpha: float, beta: float) -> Tensor:
    """Return cross-entropy * alpha * log(latency)^beta (equation 2)."""
    return cross_entropy * alpha * latency.log().pow(beta)


class DnasSearch(Strategy):
    """FBNet's search: epochs of weights and theta in turns, then nets drawn from the distribution are compared."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        strategy, space = context.run.search.strategy, context.space
        assert isinstance(strategy, FBNetDnas)
        assert isinstance(space, FBNetSpace)
        self.config = strategy
        self.space = space
        seed = seeded(context.run.seed, WEIGHTS)
        self.net = SuperNet(space, *context.shape).to(context.device)
        self.weight_optimizer = sgd(self.net.weights(), strategy.weights)
        step = strategy.architecture
        self.theta_optimizer = torch.optim.Adam(
            self.net.thetas.parameters(), lr=step.lr, betas=step.betas, weight_decay=step.weight_decay
        )
        self.weight_batches = context.data.training_batches(strategy.batch_size, seed)
        self.theta_batches = context.data.training_batches(strategy.batch_size, seed, part="held_out")
        even = [torch.full_like(theta, 1 / len(theta)) for theta in self.net.thetas]
        self.macs = macs_of(self.net, context.data.one_image().to(context.device), even)

    @property
    def steps(self) -> int:
        """Epochs, then proxy trainings."""
        return self.config.epochs + self.config.samples

    def advance(self, step: int) -> list[Row]:
        """Do an epoch, or train one of the drawn nets."""
        return self._epoch(step) if step < self.config.epochs else self._compare(step - self.config.epochs)

    def temperature(self, epoch: int) -> float:
        """Return the temperature of the Gumbel softmax in an epoch."""
        return self.config.temperature.initial * self.config.temperature.decay**epoch

    def sampled(self, number: int) -> Decisions:
        """Return the likeliest net for number 0, and nets drawn from the distribution for the others."""
        if number == 0:
            return tuple(int(p.argmax()) for p in self.net.probabilities())
        seeded(self.context.run.seed, SAMPLES, number)
        return tuple(int(torch.multinomial(p.cpu(), 1)) for p in self.net.probabilities())

    # ---- epochs -----------------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> list[Row]:
        weight_loss, weight_accuracy = self._train(epoch, architecture=False)
        row: Row = {"weight_loss": weight_loss, "weight_accuracy": weight_accuracy}
        if epoch >= self.config.frozen_epochs:
            loss, accuracy = self._train(epoch, architecture=True)
            row |= {"architecture_loss": loss, "architecture_accuracy": accuracy}
        likeliest = self.sampled(0)
        row |= {
            "temperature": self.temperature(epoch),
            "entropy": self.net.entropy(),
            "latency": float(latency_of(self.net.probabilities(), self._table, self.space)),
            "likeliest": self.space.describe(likeliest),
        }
        return [row]

    def _train(self, epoch: int, *, architecture: bool) -> tuple[float, float]:
        """Train weights or thetas for an epoch; return the mean loss and the accuracy in training."""
        batches = self.theta_batches if architecture else self.weight_batches
        losses, right = [], 0
        for number in range(len(batches)):
            batch = batches[epoch, number]
            images, labels = (batch[key].to(self.context.device) for key in ("images", "labels"))
            seeded(self.context.run.seed, ARCHITECTURE if architecture else WEIGHTS, epoch, number)
            if architecture:
                loss, logits = self.theta_step(images, labels, epoch)
            else:
                progress = (epoch * len(batches) + number) / (self.config.epochs * len(batches))
                loss, logits = self.weight_step(images, labels, epoch, progress)
            losses.append(loss)
            right += right_answers(logits, labels)
        images_seen = len(batches) * batches.batch_size
        self.spent += self.macs * images_seen * (INPUT_GRADIENTS if architecture else TRAINING)
        return float(torch.stack(losses).mean()), right / images_seen

    def weight_step(self, images: Tensor, labels: Tensor, epoch: int, progress: float) -> tuple[Tensor, Tensor]:
        """Train the weights on one batch, the thetas as they are; return loss and logits."""
        config = self.config.weights
        self.weight_optimizer.param_groups[0]["lr"] = cosine(config.lr, config.final_lr, progress)
        with torch.no_grad():
            mixture = self.net.draw(self.temperature(epoch))
        logits = self.net(images, mixture)
        loss = F.cross_entropy(logits, labels)
        self.weight_optimizer.zero_grad()
        loss.backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.weights(), config.clip_norm)
        self.weight_optimizer.step()
        return loss.detach(), logits.detach()

    def theta_step(self, images: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Train the thetas on one batch, the weights as they are; return loss and logits."""
        term = self.context.run.search.latency
        assert term is not None
        mixture = self.net.draw(self.temperature(epoch))
        logits = self.net(images, mixture)
        latency = latency_of(mixture, self._table, self.space)
        loss = multiplicative_loss(F.cross_entropy(logits, labels), latency, term.alpha, term.beta)
        thetas = list(self.net.thetas)
        for theta, gradient in zip(thetas, torch.autograd.grad(loss, thetas), strict=True):
            theta.grad = gradient
        self.theta_optimizer.step()
        return loss.detach(), logits.detach()

    @property
    def _table(self) -> LatencyTable:
        assert self.context.table is not None
        return self.context.table

    # ---- drawn nets -------------------------------------------------------------------------------------------------

    def _compare(self, number: int) -> list[Row]:
        decisions = self.sampled(number)
        judged = self.context.judge(decisions)
        self.spent += judged.spent
        self.keep(self.context.reward(judged, decisions), decisions)
        return [{**self.context.row(decisions, judged), "entropy": self.net.entropy()}]

    def state(self) -> dict[str, Any]:
        """Return weights, thetas and both optimisers."""
        return {
            "net": self.net.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "theta_optimizer": self.theta_optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        self.net.load_state_dict(state["net"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.theta_optimizer.load_state_dict(state["theta_optimizer"])
