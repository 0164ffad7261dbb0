"""Searches that train a super-net's weights and its architecture parameters in turns, each on its own data."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from convatlas.search.config import Darts, FBNetDnas
from convatlas.search.proxy import set_gradients, sgd, sgd_step
from convatlas.search.strategy import Context, Strategy


class SuperNetSearch(Strategy):
    """What FBNet's search and DARTS share.

    Args:
        config: optimisers and batch size.
        net: the super-net.
        architecture: those of its parameters that stand for the architecture; all others are weights.
        seed: of both orders of the images.
    """

    def __init__(
        self,
        context: Context,
        config: FBNetDnas | Darts,
        net: nn.Module,
        architecture: Iterable[nn.Parameter],
        seed: int,
    ) -> None:
        super().__init__(context)
        net.to(context.device)
        self.architecture = list(architecture)
        own = {id(parameter) for parameter in self.architecture}
        self.weights = [parameter for parameter in net.parameters() if id(parameter) not in own]
        self.weight_config, step = config.weights, config.architecture
        self.weight_optimizer = sgd(self.weights, config.weights)
        self.architecture_optimizer = torch.optim.Adam(
            self.architecture, lr=step.lr, betas=step.betas, weight_decay=step.weight_decay
        )
        self.parts = {
            "net": net,
            "weight_optimizer": self.weight_optimizer,
            "architecture_optimizer": self.architecture_optimizer,
        }
        self.weight_batches = context.data.training_batches(config.batch_size, seed)
        self.architecture_batches = context.data.training_batches(config.batch_size, seed, part="held_out")
        self.batches = config.epochs * len(self.weight_batches)

    def step_weights(self, loss: Tensor, epoch: int, number: int) -> None:
        """Train the weights on a batch of an epoch; the architecture stays as it is."""
        progress = (epoch * len(self.weight_batches) + number) / self.batches
        sgd_step(self.weight_optimizer, loss, self.weight_config, progress)

    def step_architecture(self, loss: Tensor) -> None:
        """Train the architecture's parameters on a batch; the weights stay as they are."""
        set_gradients(self.architecture, loss)
        self.architecture_optimizer.step()


def without_running_statistics(net: nn.Module) -> None:
    """Let every batch norm normalise with its batch, in evaluation too, and keep no statistics.

    What one mixture or architecture leaves there would fit no other.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
