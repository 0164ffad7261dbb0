"""Search by a controller: rewarded with short trainings of each net (NASNet), or with shared weights (ENAS)."""

from typing import Any

import torch
import torch.nn.functional as F

from convatlas.search.budget import EVALUATION, TRAINING, MacsCounter
from convatlas.search.config import Controller, Enas, NasnetRl
from convatlas.search.controller import Learner, LstmController, Written
from convatlas.search.proxy import correct_answers, sgd, sgd_step
from convatlas.search.shared_weights import SharedNet
from convatlas.search.spaces import Decisions, NasnetSpace
from convatlas.search.strategy import Context, Row, Strategy, seeded

CONTROLLER, CHILD, FINAL = 11, 12, 13  # streams of random numbers


def make_learner(space: NasnetSpace, config: Controller, context: Context) -> Learner:
    """Make a controller for a space, and what moves it."""
    seeded(context.run.seed, CONTROLLER)
    per_block = [False, False, True, True, True]
    sizes = config.model_dump(include={"layers", "units", "tanh", "operation_tanh"})
    choices = [len(names) for names in space.choices]
    return Learner(LstmController(choices, per_block * (len(choices) // 5), **sizes), config)


class ControllerSearch(Strategy):
    """What both searches share: a controller over NASNet's cells."""

    def __init__(self, context: Context, config: Controller) -> None:
        super().__init__(context)
        assert isinstance(context.space, NasnetSpace)
        self.space = context.space
        self.learner = make_learner(context.space, config, context)
        self.parts = {"learner": self.learner}

    def draw(self, number: int, *place: int) -> Written:
        """Draw architectures; which ones depends on the controller and on `place` alone."""
        seeded(self.context.run.seed, CONTROLLER, *place)
        with torch.no_grad():
            return self.learner.controller.draw(number)

    def judged(self, decisions: Decisions, entropy: float) -> Row:
        return {**self.try_net(decisions), "entropy": entropy}


class NasnetSearch(ControllerSearch):
    """Each drawn net is trained for a while, and its held-out accuracy is the reward. A step is one net."""

    def __init__(self, context: Context) -> None:
        config = context.run.search.strategy
        assert isinstance(config, NasnetRl)
        super().__init__(context, config.controller)
        self.updates, self.minibatch = config.updates, config.controller.minibatch
        self.rewards: list[float] = []

    @property
    def steps(self) -> int:
        """All nets of all minibatches."""
        return self.updates * self.minibatch

    def advance(self, step: int) -> list[Row]:
        """Train one net of a minibatch, and after the last learn from the rewards of all."""
        update, place = divmod(step, self.minibatch)
        written = self.draw(self.minibatch, update)  # the same for each of its nets: the controller rests in between
        row = self.judged(written.architectures()[place], float(written.entropies[place].sum()))
        self.rewards.append(row["reward"])
        if place == self.minibatch - 1:
            self.learner.learn(written.decisions, self.rewards)
            self.rewards = []
        return [row]

    def state(self) -> dict[str, Any]:
        return super().state() | {"rewards": self.rewards}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.rewards = state["rewards"]


class EnasSearch(ControllerSearch):
    """All nets share their weights: training them and the controller in turns, then proxy trainings of the best.

    A step is one epoch of both, and after the last epoch one finalist.
    """

    def __init__(self, context: Context) -> None:
        config = context.run.search.strategy
        assert isinstance(config, Enas)
        super().__init__(context, config.controller)
        self.config = config
        seed = seeded(context.run.seed, CHILD)
        self.net = SharedNet(self.space.config, *context.shape).to(context.device)
        self.counter = MacsCounter(self.net)
        self.optimizer = sgd(list(self.net.parameters()), config.weights)
        self.parts |= {"net": self.net, "optimizer": self.optimizer}
        self.weight_batches = context.data.training_batches(config.batch_size, seed)
        self.reward_batches = context.data.training_batches(config.batch_size, seed, part="held_out")
        self.finalists: list[Decisions] = []

    @property
    def steps(self) -> int:
        """Epochs, then finalists; a controller with low entropy draws fewer different ones."""
        return self.config.epochs + (len(self.finalists) or self.config.finalists)

    def advance(self, step: int) -> list[Row]:
        """Do an epoch, or train a finalist."""
        if step >= self.config.epochs:
            entropy = float(self.draw(1, FINAL).entropies.sum())
            return [self.judged(self.finalists[step - self.config.epochs], entropy)]
        row = self._train_weights(step) | self._train_controller(step)
        if step == self.config.epochs - 1:
            self.finalists = self._finalists()
        return [row]

    def _train_weights(self, epoch: int) -> Row:
        """Train the shared weights for an epoch, each batch through a net drawn for it."""
        losses = []
        steps = self.config.epochs * len(self.weight_batches)
        for number in range(len(self.weight_batches)):
            written = self.draw(1, CHILD, epoch, number)
            batch = self.weight_batches[epoch, number]
            step = epoch * len(self.weight_batches) + number
            cells = self.space.blocks(written.architectures()[0])
            images, labels = self.context.on_device(batch)
            loss = F.cross_entropy(self.net(images, cells), labels)
            sgd_step(self.optimizer, loss, self.config.weights, step / steps)
            losses.append(loss.detach())
            self.spent += TRAINING * self.counter.take()
        return {"weight_loss": float(torch.stack(losses).mean())}

    def _train_controller(self, epoch: int) -> Row:
        """Reward drawn nets with their accuracy on a held-out batch, and learn from it."""
        rewards, entropies = [], []
        for update in range(self.config.updates_per_epoch):
            written = self.draw(self.config.controller.minibatch, epoch, update)
            batch = self.reward_batches[epoch, update % len(self.reward_batches)]
            found = [self._shared_accuracy(decisions, batch) for decisions in written.architectures()]
            self.learner.learn(written.decisions, found)
            rewards += found
            entropies += written.entropies.sum(1).tolist()
        return {"shared_reward": sum(rewards) / len(rewards), "entropy": sum(entropies) / len(entropies)}

    def _shared_accuracy(self, decisions: Decisions, batch: dict[str, Any]) -> float:
        """Return the accuracy of a net on a batch, with the shared weights as they are."""
        cells = self.space.blocks(decisions)
        images, labels = self.context.on_device(batch)
        with torch.no_grad():
            correct = correct_answers(self.net(images, cells), labels)
        self.spent += EVALUATION * self.counter.take()
        return correct / len(labels)

    def _finalists(self) -> list[Decisions]:
        """Return the drawn nets that are best with the shared weights, each once."""
        drawn = list(dict.fromkeys(self.draw(self.config.samples, FINAL).architectures()))
        batches = self.context.data.held_out_batches()
        scores = [sum(self._shared_accuracy(decisions, batches[n]) for n in range(len(batches))) for decisions in drawn]
        ranked = sorted(range(len(drawn)), key=lambda n: -scores[n])
        return [drawn[n] for n in ranked[: self.config.finalists]]

    def state(self) -> dict[str, Any]:
        return super().state() | {"finalists": [list(decisions) for decisions in self.finalists]}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.finalists = [tuple(decisions) for decisions in state["finalists"]]
