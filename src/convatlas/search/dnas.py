"""FBNet's differentiable search over a super-net whose layers mix all candidates.

Wu et al., "FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural Architecture Search" (CVPR 2019),
section 3. The output of a layer is the sum of its candidates' outputs, weighted by m = softmax((theta + g) / tau) with
Gumbel noise g (equation 6). Weights and theta are trained in turns, each on its own part of the data.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.search.budget import INPUT_GRADIENTS, TRAINING, macs_of
from convatlas.search.config import FBNetDnas
from convatlas.search.latency import LatencyTable
from convatlas.search.proxy import correct_answers
from convatlas.search.spaces import Decisions, FBNetSpace, Layer
from convatlas.search.strategy import Context, Row, seeded
from convatlas.search.supernets import SuperNetSearch, without_running_statistics

Mixture = list[Tensor]
"""For every layer the weights of its candidates, `(candidates,)`, which sum to 1."""

WEIGHTS, ARCHITECTURE, SAMPLES = 1, 2, 3  # streams of random numbers


class MixedLayer(nn.Module):
    """All candidates of a layer in parallel; `(B, in, H, W) -> (B, out, H/stride, W/stride)`."""

    def __init__(self, layer: Layer, *, always_expand: bool) -> None:
        super().__init__()
        self.candidates = nn.ModuleList(layer.block(name, always_expand=always_expand) for name in layer.candidates)

    def forward(self, x: Tensor, mixture: Tensor) -> Tensor:
        outputs = [weight * candidate(x) for weight, candidate in zip(mixture, self.candidates, strict=True)]
        return torch.stack(outputs).sum(0)


class SuperNet(nn.Module):
    """The macro-architecture with a mixed layer in every searched place.

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

    def draw(self, temperature: float) -> Mixture:
        """Draw a mixture from the Gumbel softmax, with torch's own generator; gradients flow to the thetas."""
        return [F.gumbel_softmax(theta, tau=temperature) for theta in self.thetas]

    def probabilities(self) -> list[Tensor]:
        return [theta.detach().softmax(0) for theta in self.thetas]

    def entropy(self) -> float:
        """Return the mean entropy of the layers that have a choice, as a fraction of that of uniform probabilities."""
        shares = [
            float(-(p * p.clamp_min(1e-30).log()).sum()) / math.log(len(p)) for p in self.probabilities() if len(p) > 1
        ]
        return sum(shares) / max(1, len(shares))

    def forward(self, images: Tensor, mixture: Mixture) -> Tensor:
        x = self.stem(images)
        for layer, weights in zip(self.layers, mixture, strict=True):
            x = layer(x, weights)
        return self.classifier(self.head(x).mean((2, 3)))


def latency_of(mixture: Mixture, table: LatencyTable, space: FBNetSpace) -> Tensor:
    """Return the latency of a mixture in microseconds: the sum of the operators', weighted (equation 8), a scalar."""
    layers = [(m * table.of_layer(space, n).to(m)).sum() for n, m in enumerate(mixture)]
    return torch.stack(layers).sum() + table.fixed


def multiplicative_loss(cross_entropy: Tensor, latency: Tensor, alpha: float, beta: float) -> Tensor:
    """Return cross-entropy * alpha * log(latency)^beta (equation 2)."""
    return cross_entropy * alpha * latency.log().pow(beta)


class DnasSearch(SuperNetSearch):
    """Epochs that train weights and thetas in turns, then proxy trainings of nets drawn from the distribution."""

    def __init__(self, context: Context) -> None:
        config, space, term = context.run.search.strategy, context.space, context.run.search.latency
        assert isinstance(config, FBNetDnas)
        assert isinstance(space, FBNetSpace)
        assert term is not None
        assert context.table is not None
        self.config, self.space, self.term, self.table = config, space, term, context.table
        seed = seeded(context.run.seed, WEIGHTS)
        self.net = SuperNet(space, *context.shape)
        super().__init__(context, config, self.net, self.net.thetas, seed)
        even = [torch.full_like(theta, 1 / len(theta)) for theta in self.net.thetas]
        self.macs = macs_of(self.net, context.data.one_image().to(context.device), even)

    @property
    def steps(self) -> int:
        """Epochs, then proxy trainings."""
        return self.config.epochs + self.config.samples

    def advance(self, step: int) -> list[Row]:
        if step < self.config.epochs:
            return [self._epoch(step)]
        return [{**self.try_net(self.sampled(step - self.config.epochs)), "entropy": self.net.entropy()}]

    def temperature(self, epoch: int) -> float:
        """Return the temperature of the Gumbel softmax in an epoch."""
        return self.config.temperature.initial * self.config.temperature.decay**epoch

    def sampled(self, number: int) -> Decisions:
        """Return the likeliest net for number 0, and nets drawn from the distribution for the others."""
        if number == 0:
            return tuple(int(p.argmax()) for p in self.net.probabilities())
        seeded(self.context.run.seed, SAMPLES, number)
        return tuple(int(torch.multinomial(p.cpu(), 1)) for p in self.net.probabilities())

    def _epoch(self, epoch: int) -> Row:
        weight_loss, weight_accuracy = self._train(epoch, architecture=False)
        row: Row = {"weight_loss": weight_loss, "weight_accuracy": weight_accuracy}
        if epoch >= self.config.frozen_epochs:
            loss, accuracy = self._train(epoch, architecture=True)
            row |= {"architecture_loss": loss, "architecture_accuracy": accuracy}
        return row | {
            "temperature": self.temperature(epoch),
            "entropy": self.net.entropy(),
            "latency": float(latency_of(self.net.probabilities(), self.table, self.space)),
            "likeliest": self.space.describe(self.sampled(0)),
        }

    def _train(self, epoch: int, *, architecture: bool) -> tuple[float, float]:
        """Train weights or thetas for an epoch; return the mean loss and the accuracy in training."""
        batches = self.architecture_batches if architecture else self.weight_batches
        losses, correct = [], 0
        for number in range(len(batches)):
            images, labels = self.context.on_device(batches[epoch, number])
            seeded(self.context.run.seed, ARCHITECTURE if architecture else WEIGHTS, epoch, number)
            with torch.set_grad_enabled(architecture):
                mixture = self.net.draw(self.temperature(epoch))
            logits = self.net(images, mixture)
            loss = F.cross_entropy(logits, labels)
            if architecture:
                latency = latency_of(mixture, self.table, self.space)
                loss = multiplicative_loss(loss, latency, self.term.alpha, self.term.beta)
                self.step_architecture(loss)
            else:
                self.step_weights(loss, epoch, number)
            losses.append(loss.detach())
            correct += correct_answers(logits.detach(), labels)
        images_seen = len(batches) * batches.batch_size
        self.spent += self.macs * images_seen * (INPUT_GRADIENTS if architecture else TRAINING)
        return float(torch.stack(losses).mean()), correct / images_seen
