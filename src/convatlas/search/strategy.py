"""The interface of a search: steps that can be interrupted, rows for each, and an architecture at the end."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convatlas.core.seeds import mixed_seed
from convatlas.search.config import SearchRun
from convatlas.search.data import SearchData
from convatlas.search.latency import LatencyTable
from convatlas.search.proxy import Judged, train_proxy
from convatlas.search.spaces import Decisions, FBNetSpace, Space

PROXY = 41  # the stream of random numbers of proxy trainings

Row = dict[str, Any]
"""One line of the record: numbers, and `architecture` as text where one was sampled."""


def seeded(*parts: int) -> int:
    """Seed torch with a mixture of whole numbers and return it: what is drawn next depends on these alone."""
    seed = mixed_seed(*parts) % 2**32
    torch.manual_seed(seed)
    return seed


@dataclass(frozen=True)
class Context:
    """What all searches of one run share."""

    run: SearchRun  # the configuration
    data: SearchData  # both parts of the training split
    device: torch.device  # where nets are trained
    space: Space | None  # the search space; None for compound scaling
    table: LatencyTable | None  # latencies of the space's operators, where they count

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.config.num_classes, self.data.config.in_channels

    def on_device(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return batch["images"].to(self.device), batch["labels"].to(self.device)

    def build(self, decisions: Decisions) -> nn.Module:
        """Build a net of the space; its weights depend on torch's seed."""
        assert self.space is not None
        return self.space.build(decisions, *self.shape)

    def judge(self, decisions: Decisions) -> Judged:
        """Train a net of the space for a while, and test it on the held-out part.

        All nets of a run, those of random search too, are drawn and trained with one seed: they differ in their
        architecture alone.
        """
        seed = seeded(self.run.seed, PROXY)
        return train_proxy(self.build(decisions), self.data, self.run.search.proxy, seed=seed, device=self.device)

    def latency(self, decisions: Decisions) -> float | None:
        if self.table is None:
            return None
        assert isinstance(self.space, FBNetSpace)
        return self.table.of(self.space, decisions)

    def reward(self, judged: Judged, decisions: Decisions) -> float:
        """Return what is maximised: the accuracy or, where latency counts, minus FBNet's loss."""
        term, latency = self.run.search.latency, self.latency(decisions)
        if term is None or latency is None:
            return judged.accuracy
        return -judged.loss * term.alpha * math.log(latency) ** term.beta

    def row(self, decisions: Decisions, judged: Judged) -> Row:
        assert self.space is not None
        latency = self.latency(decisions)
        return {
            "architecture": self.space.describe(decisions),
            "reward": self.reward(judged, decisions),
            "accuracy": judged.accuracy,
            "loss": judged.loss,
            "macs": judged.macs,
            **({} if latency is None else {"latency": latency}),
        }


class Strategy(ABC):
    """A search that advances step by step.

    A step is a function of the state and its number, so that a search which goes on from a saved state ends in the
    same bits.

    Attributes:
        name: of what it finds, and of the file that holds it.
        spent: multiply-adds so far.
        best: the best net so far and its reward; what is found, once `done`.
        parts: nets and optimisers whose state a killed search goes on from, by name.
    """

    name: ClassVar[str] = "found"

    def __init__(self, context: Context) -> None:
        self.context = context
        self.spent = 0
        self.best: tuple[float, Decisions] | None = None
        self.parts: dict[str, Any] = {}

    @property
    @abstractmethod
    def steps(self) -> int | None:
        """How many steps there will be; None where a budget decides."""

    @abstractmethod
    def advance(self, step: int) -> list[Row]:
        """Do one step, from 0, and return what there is to record."""

    def done(self, step: int) -> bool:
        assert self.steps is not None
        return step >= self.steps

    def architectures(self) -> dict[str, dict[str, Any]]:
        """Return what was found by name: `family` and `net`, and `image_size` where it is not that of the data."""
        assert self.best is not None
        assert self.context.space is not None
        return {self.name: self.context.space.architecture(self.best[1])}

    def state(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return {"parts": parts, "spent": self.spent, "best": self.best}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self.spent = state["spent"]
        self.best = None if state["best"] is None else (state["best"][0], tuple(state["best"][1]))

    def try_net(self, decisions: Decisions) -> Row:
        """Give a net a proxy training, remember it if it is the best so far, and return its row."""
        judged = self.context.judge(decisions)
        self.spent += judged.spent
        row = self.context.row(decisions, judged)
        self.keep(row["reward"], decisions)
        return row

    def keep(self, reward: float, decisions: Decisions) -> None:
        """Remember a net if it is better than all before; the first of equals stays."""
        if self.best is None or reward > self.best[0]:
            self.best = reward, decisions


@dataclass
class Phase:
    """One strategy's record."""

    name: str  # `search` or `random`
    rows: list[Row] = field(default_factory=list)  # of all steps
    spent: int = 0  # multiply-adds
    seconds: float = 0.0  # CPU seconds, which differ from run to run and are therefore kept apart from the result
    architectures: dict[str, dict[str, Any]] = field(default_factory=dict)  # what was found, by name
    step: int = 0  # steps that are done
