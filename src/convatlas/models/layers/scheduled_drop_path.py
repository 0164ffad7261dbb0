"""Drop path whose rate grows while a net trains.

Zoph, Vasudevan, Shlens, Le, "Learning Transferable Architectures for Scalable Image Recognition" (CVPR 2018, section 4
and appendix A.2), and, without a share of the depth, Liu, Simonyan, Yang, "DARTS" (ICLR 2019, section 3.2).
"""

from torch import Tensor, nn


class ScheduledDropPath(nn.Module):
    """Zero one branch of a cell for single images, and scale the others up so that the expectation stays.

    The probability is `rate` times the share of the training that is done. A net whose training nobody reports, see
    `set_training_progress`, drops at the full rate throughout.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.progress = 1.0

    @property
    def current_rate(self) -> float:
        return self.rate * self.progress

    def forward(self, x: Tensor) -> Tensor:
        """`(B, ...) -> (B, ...)`; the identity in evaluation."""
        rate = self.current_rate
        if not self.training or rate == 0:
            return x
        kept = x.new_empty(len(x), *(1,) * (x.ndim - 1)).bernoulli_(1 - rate)
        return x * kept / (1 - rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def set_training_progress(net: nn.Module, fraction: float) -> None:
    """Tell every drop path of `net` which share of the training is done, from 0 to 1."""
    for module in net.modules():
        if isinstance(module, ScheduledDropPath):
            module.progress = fraction


def drop_path_figures(net: nn.Module) -> dict[str, float]:
    """Return the mean of the current rates of a net's drop paths as `drop_path_rate`; nothing if it drops nothing."""
    drops = [m for m in net.modules() if isinstance(m, ScheduledDropPath) and m.rate > 0]
    return {"drop_path_rate": sum(drop.current_rate for drop in drops) / len(drops)} if drops else {}
