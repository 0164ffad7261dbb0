"""The controller: what its log-probabilities are, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch

from convatlas.models.classification.nasnet import OPERATIONS
from convatlas.search.config import Controller, NasnetSpaceConfig
from convatlas.search.controller import Learner, LstmController
from convatlas.search.spaces import NasnetSpace


def nasnet_space(blocks=5, operations=OPERATIONS):
    return NasnetSpace(
        NasnetSpaceConfig(
            kind="nasnet",
            blocks=blocks,
            operations=operations,
            combinations=["add", "concat"],
            repeats=1,
            filters=4,
            stem="small",
            stem_filters=4,
        )
    )


def sizes(space):
    return [len(names) for names in space.choices]


def test_nasnet_s_space_takes_50_decisions():
    found = sizes(nasnet_space())
    assert len(found) == 50
    assert found[:25] == found[25:]
    assert found[:5] == [2, 2, 13, 13, 2]
    assert [found[block * 5] for block in range(5)] == [2, 3, 4, 5, 6]


def test_the_log_probability_of_an_architecture_is_the_sum_of_its_decisions():
    """Against a straightforward computation with the controller's own parts, one decision after another."""
    torch.manual_seed(0)
    controller = LstmController(sizes(nasnet_space()), units=16)
    written = controller.draw(3)
    assert written.log_probabilities.shape == (3, 50)
    for row, decisions in enumerate(written.architectures()):
        total, state, x = 0.0, None, controller.start[None]
        for place, choice in enumerate(decisions):
            output, state = controller.lstm(x, state)
            total += controller.heads[place](output)[0].log_softmax(0)[choice].item()
            if place < 49:
                x = controller.embeddings[place](torch.tensor([choice]))
        assert written.log_probabilities[row].sum().item() == pytest.approx(total, rel=1e-5)
    again = controller.judge(written.decisions)
    torch.testing.assert_close(again.log_probabilities, written.log_probabilities)


def test_probabilities_of_all_architectures_sum_to_one():
    torch.manual_seed(0)
    controller = LstmController([2, 3, 2], units=8)
    everything = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2))
    assert float(controller.judge(everything).log_probabilities.sum(1).exp().sum()) == pytest.approx(1.0, rel=1e-5)


def test_the_entropy_at_zero_weights_is_the_log_of_the_number_of_choices():
    found = sizes(nasnet_space())
    controller = LstmController(found, units=8)
    for parameter in controller.parameters():
        torch.nn.init.zeros_(parameter)
    expected = torch.tensor([math.log(number) for number in found])
    torch.testing.assert_close(controller.draw(2).entropies, expected.expand(2, -1))


def test_the_tanh_bounds_the_logits():
    torch.manual_seed(0)
    controller = LstmController([4, 4], [False, True], units=8, tanh=1.1, operation_tanh=2.5)
    for head in controller.heads:
        torch.nn.init.constant_(head.bias, 0.0)
        head.bias.data[0], head.bias.data[1] = 100.0, -100.0
    for place, bound in enumerate((1.1, 1.1 / 2.5)):
        judged = controller.judge(torch.tensor([[0, 0], [1, 1]]))
        difference = judged.log_probabilities[0, place] - judged.log_probabilities[1, place]
        assert float(difference) == pytest.approx(2 * bound, abs=1e-3)


def share_of_separable_3x3(space, decisions):
    """Return the toy reward: how many of the operations are separable 3x3."""
    names = [b for cell in space.blocks(decisions).values() for block in cell for b in (block.left, block.right)]
    return names.count("separable_3x3") / len(names)


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo"])
def test_the_policy_converges_on_a_toy_reward_where_random_does_not(algorithm):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    space = nasnet_space(blocks=1, operations=("identity", "average_3x3", "conv_1x1", "separable_3x3"))
    config = Controller(
        algorithm=algorithm,
        layers=1,
        units=32,
        lr=0.02,
        entropy_weight=1e-5,
        baseline_decay=0.95,
        minibatch=20,
        ppo_epochs=3,
        ppo_clip=0.2,
        tanh=None,
        operation_tanh=None,
    )
    controller = LstmController(sizes(space), units=config.units)
    learner = Learner(controller, config)
    means = []
    for _ in range(60):
        with torch.no_grad():
            written = controller.draw(config.minibatch)
        rewards = [share_of_separable_3x3(space, decisions) for decisions in written.architectures()]
        learner.learn(written.decisions, rewards)
        means.append(sum(rewards) / len(rewards))
    generator = torch.Generator().manual_seed(0)
    by_chance = [share_of_separable_3x3(space, space.sample(generator)) for _ in range(200)]
    assert sum(means[-10:]) / 10 > 0.9
    assert sum(by_chance) / 200 == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize(("clip", "low", "high"), [(0.2, 1.2, 1.6), (100.0, 2.5, 5.0)])
def test_ppo_stops_where_a_probability_has_moved_as_far_as_it_may(clip, low, high):
    """Beyond the clip a gain has no gradient, and only the optimiser's momentum goes on; four times is certainty."""
    torch.manual_seed(0)
    controller = LstmController([4], units=8)
    config = Controller(
        algorithm="ppo",
        layers=1,
        units=8,
        lr=0.005,
        entropy_weight=0.0,
        baseline_decay=0.999,
        minibatch=1,
        ppo_epochs=100,
        ppo_clip=clip,
        tanh=None,
        operation_tanh=None,
    )
    learner = Learner(controller, config)
    learner.baseline = 0.0
    decision = torch.tensor([[2]])
    before = controller.judge(decision).log_probabilities.item()
    learner.learn(decision, [1.0])
    ratio = math.exp(controller.judge(decision).log_probabilities.item() - before)
    assert low < ratio < high
