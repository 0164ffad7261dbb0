"""The controller: an LSTM that writes architectures one decision after another.

Zoph, Vasudevan, Shlens, Le, "Learning Transferable Architectures for Scalable Image Recognition" (CVPR 2018), appendix
A.1: one softmax for each of the 2 * 5 * B decisions. Pham et al., "Efficient Neural Architecture Search via Parameter
Sharing" (ICML 2018) bound the logits with a tanh. Learning: Williams (1992), REINFORCE; Schulman et al. (2017), PPO.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.search.config import Controller
from convatlas.search.spaces import Decisions

INITIAL = 0.1  # weights are drawn from U(-0.1, 0.1), as in the paper


@dataclass(frozen=True)
class Written:
    """N architectures of T decisions."""

    decisions: Tensor  # `(N, T)` int64
    log_probabilities: Tensor  # `(N, T)`, of every decision given those before it
    entropies: Tensor  # `(N, T)`, of the distributions that the decisions were drawn from

    def architectures(self) -> list[Decisions]:
        return [tuple(row) for row in self.decisions.tolist()]


class LstmController(nn.Module):
    """Draws every decision from a softmax of its own, given all decisions before it.

    Args:
        choices: how many choices each decision has.
        operations: whether its logits are bound like those of an operation.
        layers: of the LSTM.
        units: of each layer.
        tanh: bound of the logits; None leaves them free.
        operation_tanh: what that bound is divided by for operations and combinations.
    """

    def __init__(
        self,
        choices: Sequence[int],
        operations: Sequence[bool] | None = None,
        *,
        layers: int = 1,
        units: int = 100,
        tanh: float | None = None,
        operation_tanh: float | None = None,
    ) -> None:
        super().__init__()
        self.choices = tuple(choices)
        self.units = units
        self.start = nn.Parameter(torch.zeros(units))
        # What was decided goes in through an embedding of that decision; nothing follows the last.
        self.embeddings = nn.ModuleList(nn.Embedding(number, units) for number in self.choices[:-1])
        self.lstm = nn.LSTM(units, units, layers)
        self.heads = nn.ModuleList(nn.Linear(units, number) for number in self.choices)
        divisors = [
            operation_tanh or 1.0 if of_operation else 1.0 for of_operation in operations or [False] * len(choices)
        ]
        self.bounds = [None if tanh is None else tanh / divisor for divisor in divisors]
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -INITIAL, INITIAL)

    def draw(self, number: int) -> Written:
        """Draw architectures, with torch's own generator."""
        return self._write(number, None)

    def judge(self, decisions: Tensor) -> Written:
        return self._write(len(decisions), decisions)

    def _write(self, number: int, given: Tensor | None) -> Written:
        inputs = self.start.expand(1, number, self.units)
        state: Any = None
        decisions, log_probabilities, entropies = [], [], []
        for place, head in enumerate(self.heads):
            outputs, state = self.lstm(inputs, state)
            logits = head(outputs[0])
            bound = self.bounds[place]
            if bound is not None:
                logits = bound * torch.tanh(logits)
            logs = logits.log_softmax(1)
            chosen = torch.multinomial(logs.exp(), 1)[:, 0] if given is None else given[:, place]
            decisions.append(chosen)
            log_probabilities.append(logs.gather(1, chosen[:, None])[:, 0])
            entropies.append(-(logs.exp() * logs).sum(1))
            if place < len(self.embeddings):
                inputs = self.embeddings[place](chosen)[None]
        return Written(torch.stack(decisions, 1), torch.stack(log_probabilities, 1), torch.stack(entropies, 1))


class Learner:
    """Moves a controller towards architectures with a high reward.

    A moving average of rewards is taken off each reward. REINFORCE makes one update with a minibatch; PPO makes several
    and keeps the probability of each decision near to that under which it was drawn.
    """

    def __init__(self, controller: LstmController, config: Controller) -> None:
        self.controller = controller
        self.config = config
        self.optimizer = torch.optim.Adam(controller.parameters(), lr=config.lr)
        self.baseline: float | None = None

    def learn(self, decisions: Tensor, rewards: Sequence[float]) -> None:
        mean = sum(rewards) / len(rewards)
        decay = self.config.baseline_decay
        self.baseline = mean if self.baseline is None else decay * self.baseline + (1 - decay) * mean
        advantages = torch.tensor(rewards, device=decisions.device) - self.baseline
        if self.config.algorithm == "reinforce":
            written = self.controller.judge(decisions)
            self._update(-(advantages * written.log_probabilities.sum(1)).mean(), written)
            return
        with torch.no_grad():
            before = self.controller.judge(decisions).log_probabilities
        for _ in range(self.config.ppo_epochs):
            written = self.controller.judge(decisions)
            ratios = (written.log_probabilities - before).exp()
            clipped = ratios.clamp(1 - self.config.ppo_clip, 1 + self.config.ppo_clip)
            gains = torch.minimum(ratios * advantages[:, None], clipped * advantages[:, None])
            self._update(-gains.sum(1).mean(), written)

    def _update(self, loss: Tensor, written: Written) -> None:
        loss = loss - self.config.entropy_weight * written.entropies.sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        parts = {"controller": self.controller.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**parts, "baseline": self.baseline}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state["controller"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline = state["baseline"]
