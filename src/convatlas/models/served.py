"""A net as other programs need it: raw images in, plain tensors out; and as a `torch.export` program."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn


class Served(nn.Module):
    """A net of a task as other programs get it.

    Attributes:
        outputs: names of what it answers with.
        one_at_a_time: whether it takes one image, not a batch.
    """

    outputs: ClassVar[tuple[str, ...]]
    one_at_a_time: ClassVar[bool]


class ServedNet(Served):
    """A classification or segmentation net behind its normalisation.

    `(B, C, H, W)` images in [0, 1] give `(B, classes)` or `(B, classes, H, W)` probabilities, float32 both.

    Args:
        net: in evaluation mode, of any floating type.
        mean: subtracted from each channel.
        std: what each channel is then divided by; nowhere 0.
    """

    outputs = ("probabilities",)
    one_at_a_time = False

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.dtype = next(net.parameters()).dtype
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(((images - self.mean) / self.std).to(self.dtype))
        return logits.float().softmax(dim=1)


class ServedDetector(Served):
    """A detector with its choice of boxes, for one image at a time.

    `(1, C, S, S)` in [0, 1] gives `boxes (n, 4)` in pixels of S, `scores (n,)` and `labels (n,)` from 1, the
    top-scoring first.

    Args:
        net: in evaluation mode; it normalises images itself.
        mean: 0 of each channel.
        std: 1 of each channel.
    """

    outputs = ("boxes", "scores", "labels")
    one_at_a_time = True

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        assert not any(mean), "a detector's images are not normalised"
        assert {*std} == {1.0}, "a detector's images are not normalised"
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.net([images[0]])[0]
        return found["boxes"], found["scores"], found["labels"]


SERVED: Mapping[str, type[ServedNet] | type[ServedDetector]] = {
    "classification": ServedNet,
    "segmentation": ServedNet,
    "detection": ServedDetector,
}
"""How the nets of a task are served."""


def traced(served: Served, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """Trace a net for batches of any size, a detector for one image; whatever torch raises is not caught.

    Args:
        served: in evaluation mode.
        shape: `(C, S, S)` of the images.
    """
    single = served.one_at_a_time
    images = torch.rand(1 if single else 2, *shape, generator=torch.Generator().manual_seed(0))
    shapes = None if single else ({0: torch.export.Dim.DYNAMIC},)
    with torch.no_grad(), _without_branches():
        program = torch.export.export(served, (images,), dynamic_shapes=shapes, strict=False)
    _forget_assertions(program)
    return program


def _forget_assertions(program: torch.export.ExportedProgram) -> None:
    """Let a detector's program find nothing, or one object.

    torch takes a number that it does not know, such as that of the boxes above a score, to be 2 or more, and puts an
    assertion of it into the program, which then fails for other images although its operators would not.
    """
    graph = program.graph_module.graph
    for node in [*graph.nodes]:
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Suppress overlapping boxes of each class: `torchvision.ops.batched_nms` without its branches on their number."""
    top = torch.cat([boxes.new_zeros(1, 4), boxes]).max()
    return torch.ops.torchvision.nms(boxes + (classes.to(boxes) * (top + 1))[:, None], scores, threshold)


@contextmanager
def _without_branches() -> Iterator[None]:
    """Let detectors be traced: torchvision's suppression asks how many boxes there are, which a graph cannot."""
    import torchvision

    theirs = torchvision.ops.boxes.batched_nms
    with ExitStack() as stack:
        for module in [*sys.modules.values()]:
            if getattr(module, "__dict__", {}).get("batched_nms") is theirs:
                stack.enter_context(patch.object(module, "batched_nms", _batched_nms))
        yield
